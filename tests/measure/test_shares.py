"""A search that several processes share, over gloo on a CPU: the plan of one process, one journal, errors on all."""

import json

import pytest
import torch
from lightning.fabric import Fabric
from torch.distributed.device_mesh import init_device_mesh

from lit_prune import load, prune, shard
from lit_prune.errors import DataError, LitPruneError, MeasureError
from lit_prune.export import save
from lit_prune.loading.fsdp import whole_copy
from lit_prune.loading.processes import Processes, processes_of_fabric
from lit_prune.measure import share_of_rows, shares_of
from lit_prune.plan import PrunePlan
from lit_prune.surgery import removed_sublayers
from tests.processes import in_torchrun
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(1)
SIZES = (3, 2, 1, 4)  # of the third, one of two processes has nothing
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in SIZES]
for each in BATCHES[:2]:
    each["attention_mask"] = torch.ones_like(each["input_ids"])
    each["attention_mask"][0, 12:] = 0
UNSEEN = {"some": BATCHES[2:], "others": BATCHES[:2]}


def in_processes(folder, number, work):
    """What each of several processes returned or raised, by rank; all of it through JSON."""

    def run():
        fabric = Fabric(accelerator="cpu", devices=number, strategy="ddp")
        fabric.launch()
        try:
            return {"found": work(fabric)}
        except LitPruneError as error:
            return {"error": f"{type(error).__name__}: {error}"}

    return in_torchrun(folder, number, run)


def search(fabric=None, *, num_blocks=6, shards=False, then=lambda model, plan: None, **options):
    model = tiny_model("llama", num_hidden_layers=num_blocks)
    if shards:
        shard(model, init_device_mesh("cpu", (fabric.world_size,)))
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(len(output)))
    plan = prune(model, BATCHES, fabric=fabric, **{"amount": 0.35, "progress": False, "unseen": UNSEEN, **options})
    assert set(removed_sublayers(model)) == set(plan.removed)
    then(model, plan)
    return {"plan": plan.to_dict(), "sequences": sum(seen)}


def assert_same(plan, expected):
    """But for rounding: other shapes are added up in another order."""
    plan, expected = PrunePlan.from_dict(plan), PrunePlan.from_dict(expected)
    assert plan.calibration == expected.calibration
    assert plan.budget | {"rise": None} == expected.budget | {"rise": None}
    assert plan.budget.get("rise", 0) == pytest.approx(expected.budget.get("rise", 0), rel=1e-4)
    assert plan.unseen.keys() == expected.unseen.keys()
    for name, row in expected.unseen.items():
        assert plan.unseen[name] == pytest.approx(row, rel=1e-4, abs=1e-5), name
    for step, other in zip(plan.steps, expected.steps, strict=True):
        assert step.removed == other.removed
        assert step.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-5)
        assert step.nll_before == pytest.approx(other.nll_before, abs=1e-5)
        assert step.nll_after == pytest.approx(other.nll_after, abs=1e-5)
        assert step.measured == other.measured


@pytest.mark.parametrize("options", [{"search": "progressive"}, {"search": "lazy"}, {"amount": None, "max_rise": 0.1}])
def test_two_processes_make_the_plan_of_one_and_share_the_work(tmp_path, options):
    # All states are kept, or the smaller ones of two processes would save a few blocks more.
    options = {**options, "max_state_bytes": 1 << 30}
    alone = search(**options)
    first, second = (each["found"] for each in in_processes(tmp_path, 2, lambda fabric: search(fabric, **options)))
    assert first["plan"] == second["plan"]
    assert_same(first["plan"], alone["plan"])
    assert [each["cost"] for each in first["plan"]["steps"]] == [each["cost"] for each in alone["plan"]["steps"]]
    # Of 3, 2, 1 and 4 sequences the first takes 2, 1, 1 and 2, the second 1, 1, 1 for nothing, and 2; unseen ones go
    # in halves.
    assert 0.5 <= first["sequences"] / alone["sequences"] <= 0.65
    assert 0.4 <= second["sequences"] / alone["sequences"] <= 0.55


@pytest.mark.parametrize(
    "options",
    [
        {"search": "progressive"},
        {"search": "lazy", "offload": True},
        {"search": "progressive", "forks": 3},
        {"search": "portfolio"},
        {"search": "one_shot", "scorer": {"name": "magnitude", "protect_first": 0}},
        {"granularity": "block", "scorer": "angular", "search": "contiguous"},
        {"scorer": "kl", "of": "flops"},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_two_processes_with_a_shard_each_make_the_plan_and_weights_of_one(tmp_path, options):
    def keep(model, plan):
        whole = whole_copy(model)
        if whole is not None:
            save(whole, tmp_path / "shards", plan=plan)

    options = {**options, "num_blocks": 4}  # each is gathered anew for every candidate
    alone = search(then=lambda model, plan: save(model, tmp_path / "alone", plan=plan), **options)
    found = in_processes(tmp_path, 2, lambda fabric: search(fabric, shards=True, then=keep, **options))
    first, second = (each["found"] for each in found)
    assert first["plan"] == second["plan"]
    assert_same(first["plan"], alone["plan"])
    shards, whole = (load(tmp_path / name) for name in ("shards", "alone"))
    assert shards.config.to_diff_dict() | {"_name_or_path": ""} == whole.config.to_diff_dict() | {"_name_or_path": ""}
    for (name, weight), (other, expected) in zip(shards.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other
        assert torch.allclose(weight, expected, atol=1e-5), name


def test_a_search_goes_on_with_shards_of_the_model(tmp_path):
    journal = tmp_path / "journal.jsonl"
    small = {"journal": journal, "num_blocks": 4}
    alone = search(**small)
    lines = journal.read_text().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    journal.write_text("".join(kept))
    again = in_processes(tmp_path, 2, lambda fabric: search(fabric, shards=True, **small))[0]["found"]
    assert_same(again["plan"], alone["plan"])
    assert journal.read_text().startswith("".join(kept))


def test_what_shards_cannot_give_is_refused_before_any_work(tmp_path):
    for options, message in (
        ({"scorer": "taylor", "amount": 0.05}, "Taylor wants gradients of whole weights"),
        ({"compensate": "bias"}, "compensation 'bias' changes whole weights"),
        ({"of": "latency"}, "latency of its sublayers cannot be measured"),
    ):
        found = in_processes(tmp_path, 2, lambda fabric: search(fabric, shards=True, **options))  # noqa: B023
        assert all(message in each["error"] for each in found)
    found = in_processes(tmp_path, 2, lambda fabric: search(fabric, shards=True, then=save_as_it_is, amount=0.05))
    assert all("save what lit_prune.sharding.whole_copy" in each["error"] for each in found)


def save_as_it_is(model, plan):
    save(model, "nowhere", plan=plan)


def measured(path):
    """Loss sums by what was out and by batch, none of them twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    found = {(*each["without"], each["batch"]): each["nll"] for each in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_a_search_goes_on_with_another_number_of_processes(tmp_path, before, after):
    journal, whole = tmp_path / "journal.jsonl", tmp_path / "whole.jsonl"

    def run(number, path):
        if number == 1:
            return search(journal=path)
        return in_processes(tmp_path, number, lambda fabric: search(fabric, journal=path))[0]["found"]

    run(before, journal)
    whole.write_text(journal.read_text())
    kept = journal.read_text().splitlines(keepends=True)[:70]
    journal.write_text("".join(kept))
    again = run(after, journal)
    assert_same(again["plan"], search()["plan"])
    assert journal.read_text().startswith("".join(kept))
    found, expected = measured(journal), measured(whole)
    assert found.keys() == expected.keys()
    for key, nll in found.items():
        assert nll == pytest.approx(expected[key], rel=1e-5)
        assert len(nll) == SIZES[key[-1]], "whole batches"


def test_what_is_wrong_in_one_process_stops_all(tmp_path):
    path = tmp_path / "journal.jsonl"
    search(journal=path)

    def other_settings(fabric):
        search(fabric, journal=path, scorer="ppl")

    def other_weights(fabric):
        prune(tiny_model("llama", seed=fabric.global_rank), BATCHES, amount=0.1, progress=False, fabric=fabric)

    first, second = (each["error"] for each in in_processes(tmp_path, 2, other_settings))
    assert first.startswith("MeasureError")
    assert "another search: scorer" in first
    assert second == "LitPruneError: process 0 failed; its error says why"
    for each in in_processes(tmp_path, 2, other_weights):
        assert each["error"].startswith("MeasureError: the processes hold different models")


def test_a_step_is_told_once(tmp_path):
    def told(fabric):
        seen = []
        search(fabric, on_step=lambda plan: seen.append(len(plan.steps)))
        return seen

    first, second = (each["found"] for each in in_processes(tmp_path, 2, told))
    assert first == list(range(1, len(first) + 1))
    assert second == []


def test_shares_are_all_sequences_once():
    for size in (1, 2, 3, 4):
        shares = [shares_of(BATCHES, Processes(rank, size)) for rank in range(size)]
        for number, batch in enumerate(BATCHES):
            parts = [share_of_rows(len(batch["input_ids"]), Processes(rank, size)) for rank in range(size)]
            rows = [row for part in parts for row in range(len(batch["input_ids"]))[part]]
            assert rows == list(range(len(batch["input_ids"])))
            for rank, part in enumerate(parts):
                share = shares[rank][number]
                if part.start == part.stop:
                    assert len(share["input_ids"]) == 1
                    assert set(share["labels"].flatten().tolist()) == {-100}
                else:
                    assert all(torch.equal(share[name], value[part]) for name, value in batch.items())


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(DataError, match="5 processes share .* largest batch has 4: give batches of 5"):
        shares_of(BATCHES, Processes(0, 5))


def test_a_strategy_that_takes_the_model_apart_is_refused():
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric._strategy = type("FSDPStrategy", (), {})()
    with pytest.raises(LitPruneError, match="FSDPStrategy is not supported"):
        prune(tiny_model("llama"), BATCHES, amount=0.1, fabric=fabric)


def test_one_launched_process_is_as_good_as_none():
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    assert search(fabric)["plan"] == search()["plan"]
    with pytest.raises(MeasureError, match="is no journal"):
        processes_of_fabric(fabric).first(lambda: search(journal=__file__))
