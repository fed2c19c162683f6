"""Measurements that outlive the process that made them."""

import errno
import json
import multiprocessing
import os
import random
import re
import signal
import time

import pytest
import torch

from lit_prune import prune
from lit_prune.errors import MeasureError
from lit_prune.measure import Journal, WhatIf
from lit_prune.plan import Candidate
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (2, 20), generator=GENERATOR)} for _ in range(3)]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
REAL_WRITE = os.write
FORK = multiprocessing.get_context("fork")


def search(path, **changes):
    model = tiny_model("llama", num_hidden_layers=8)
    options = {"amount": 0.35, "search": "progressive", "progress": False, **changes}
    return prune(model, BATCHES, journal=path, **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def figures(path):
    """What was measured; not the work, since states may have had to be computed again."""
    return [(each["without"], each["batch"], each["nll"]) for each in lines(path)]


def test_killed_ten_times_it_ends_with_the_same_plan_and_measures_nothing_twice(tmp_path):
    expected = search(tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    chance = random.Random(0)
    sizes = []
    for _ in range(10):
        process = FORK.Process(target=search, args=(path,))
        process.start()
        # At a random moment of the round in which it is: after some more measurements than last time.
        wanted = (len(path.read_bytes().splitlines()) if path.exists() else 0) + chance.randint(1, 12)
        while process.is_alive() and (not path.exists() or len(path.read_bytes().splitlines()) < wanted):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed in the middle"
        sizes.append(len(path.read_bytes().splitlines()))
    assert sizes == sorted(sizes)
    plan = search(path)
    assert [step.removed for step in plan.steps] == [step.removed for step in expected.steps]
    assert [step.scores for step in plan.steps] == [step.scores for step in expected.steps]
    made = [(tuple(each["without"]), each["batch"]) for each in lines(path)]
    assert len(made) == len(set(made)) == len(lines(tmp_path / "whole.jsonl"))


def test_a_second_search_measures_nothing_and_counts_what_the_first_did(tmp_path):
    plan = search(tmp_path / "journal.jsonl")
    assert sum(each["blocks"] for each in lines(tmp_path / "journal.jsonl")) == round(plan.cost * len(BATCHES) * 8)
    before = (tmp_path / "journal.jsonl").read_bytes()
    again = search(tmp_path / "journal.jsonl")
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert again == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": 0.3}, "budget .*0.35.* there, .*0.3.* here"),
        ({"scorer": "ppl"}, "scorer .*nri.* there, .*ppl.* here"),
        ({"granularity": "attention", "amount": 0.1}, "granularity 'sublayer' there, 'attention' here"),
        ({"protect": ["mlp.1"]}, "protect"),
    ],
)
def test_other_settings_are_refused_and_leave_the_journal_alone(tmp_path, changes, message):
    path = tmp_path / "journal.jsonl"
    search(path)
    before = path.read_bytes()
    with pytest.raises(MeasureError, match=f"another search: .*{message}.* delete it"):
        search(path, **changes)
    assert path.read_bytes() == before


def test_other_weights_and_other_text_are_refused(tmp_path):
    model = tiny_model("llama")
    path = tmp_path / "journal.jsonl"
    prune(model, BATCHES, amount=0.1, journal=path, progress=False)
    with pytest.raises(MeasureError, match="weights"):
        prune(tiny_model("llama", seed=1), BATCHES, amount=0.1, journal=path, progress=False)
    with pytest.raises(MeasureError, match="calibration"):
        prune(tiny_model("llama"), BATCHES[1:], amount=0.1, journal=path, progress=False)


def changed(parts):
    """A model with another value where the first numbers of its weights are what they were."""
    model = tiny_model("mixtral")
    with torch.no_grad():
        for each in parts(model):
            each += 1e-3
    return model


DECIDING = {
    "weights": [
        (lambda: changed(lambda model: [model.model.embed_tokens.weight[100:]]), {}),
        (lambda: changed(lambda model: [each[1:] for each in model.model.layers[2].mlp.experts.parameters()]), {}),
    ],
    "network": [
        (lambda: tiny_model("mixtral", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}), {}),
        (lambda: exchanged(tiny_model("mixtral")), {}),
    ],
    "inputs": [
        (lambda: tiny_model("mixtral"), {"attention_mask": torch.ones(2, 20).long().tril(12)}),
        (lambda: tiny_model("mixtral"), {"position_ids": torch.arange(20).expand(2, 20) % 12}),
    ],
}


def exchanged(model):
    model.model.layers[1].mlp.experts.act_fn = torch.nn.GELU()
    return model


@pytest.mark.parametrize(("name", "make", "inputs"), [(name, *each) for name, all in DECIDING.items() for each in all])
def test_everything_that_decides_a_loss_is_in_the_journal(tmp_path, name, make, inputs):
    path = tmp_path / "journal.jsonl"
    ids = BATCHES[0]["input_ids"]
    asked = {"amount": 0.2, "search": "one_shot", "journal": path, "progress": False}
    prune(tiny_model("mixtral"), [{"input_ids": ids}], **asked)
    prune(tiny_model("mixtral"), [{"input_ids": ids, "name": ["a", "b"]}], **asked)
    before = path.read_bytes()
    with pytest.raises(MeasureError, match=f"another search: {name} "):
        prune(make(), [{"input_ids": ids, **inputs}], **asked)
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    for notes in ("my notes\n", "my notes", "my\nnotes", '{"a": 1}\n{"b"'):
        path.write_text(notes)
        with pytest.raises(MeasureError, match="is no journal"):
            Journal(path, {})
        assert path.read_text() == notes


@pytest.mark.parametrize("torn", ['{"without": ["mlp.', ""])
def test_a_line_that_was_cut_is_measured_again(tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    search(path)
    whole = path.read_text()
    kept = whole.splitlines(keepends=True)[:-5]
    path.write_text("".join(kept) + torn)
    search(path)
    path.with_name("whole.jsonl").write_text(whole)
    assert figures(path) == figures(path.with_name("whole.jsonl"))


@pytest.mark.filterwarnings("ignore:.* lines of .* are damaged")
def test_any_flipped_bit_is_refused_or_measured_again(tmp_path):
    path, settings = tmp_path / "journal.jsonl", {"model": "x", "prices": {"seconds": 0.25}}
    with Journal(path, settings) as journal:
        for number in range(3):
            journal.put((frozenset({CANDIDATES[number].sublayers[0]}), number), [1.5, 0.1 + 0.2], 4)
        expected = dict(journal._known)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert Journal.header(path).get("prices") in (None, settings["prices"])
        try:
            with Journal(path, settings) as journal:
                assert journal._known.items() <= expected.items()
                assert len(journal) < 3
        except MeasureError:
            refused += 1
    assert refused == whole.index(b"\n") + 1, "every bit of the first line"


def test_damaged_lines_are_told(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = search(path)
    path.write_bytes(path.read_bytes().replace(b'"nll": [1', b'"nll": [2'))
    with pytest.warns(UserWarning, match=r"lines of .* are damaged; they are measured again"):
        again = search(path)
    assert [step.scores for step in again.steps] == [step.scores for step in whole.steps]


def test_a_journal_of_before_there_were_checksums_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = search(path)
    old = re.sub(r', "crc32": [0-9]+', "", path.read_text()).replace('journal": 2', 'journal": 1')
    path.write_text("".join(old.splitlines(keepends=True)[:-5]))
    again = search(path)
    assert [step.scores for step in again.steps] == [step.scores for step in whole.steps]
    assert path.read_text().startswith(old[: old.rindex("\n", 0, -2000)])


def test_a_second_search_is_refused_while_the_first_one_runs(tmp_path):
    path = tmp_path / "journal.jsonl"

    def second(plan):
        before = path.read_bytes()
        with pytest.raises(MeasureError, match="another process is searching with the journal"):
            search(path)
        assert path.read_bytes() == before
        refused.append(plan)

    refused = []
    search(path, on_step=second)
    assert refused
    search(path)


def test_a_full_disk_is_told_and_what_was_written_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    whole = search(tmp_path / "whole.jsonl")
    room = [3000]

    def write(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = REAL_WRITE(descriptor, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(MeasureError, match="No space left on device.*the same command goes on"):
        search(path)
    monkeypatch.undo()
    assert len(path.read_bytes()) == 3000
    assert search(path).steps[-1].scores == whole.steps[-1].scores
    assert figures(path) == figures(tmp_path / "whole.jsonl")


def fused_step(layer):
    weight = layer.mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


TRAININGS = {
    "in place": lambda layer: layer.mlp.up_proj.weight.detach().add_(0.1),
    "behind autograd's back": lambda layer: layer.mlp.up_proj.weight.data.add_(0.1),
    "other data": lambda layer: setattr(layer.mlp.up_proj.weight, "data", layer.mlp.up_proj.weight.data + 0.1),
    "another parameter": lambda layer: setattr(
        layer.mlp.up_proj, "weight", torch.nn.Parameter(layer.mlp.up_proj.weight + 0.1)
    ),
    "fused optimizer": fused_step,
}


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_a_model_that_was_trained_is_measured_again(train):
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES)
    first = what_if.losses(CANDIDATES)
    count = what_if.num_block_evaluations
    assert what_if.losses(CANDIDATES).without == first.without
    assert what_if.num_block_evaluations == count, "nothing changed, nothing ran"
    train(model.model.layers[3])
    trained = what_if.losses(CANDIDATES)
    assert trained.base == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)
    assert trained.without == WhatIf(model, BATCHES).losses(CANDIDATES).without != first.without


def test_a_search_whose_model_is_trained_in_between_goes_on_with_its_own_measurements_alone(tmp_path):
    def trained(factor):
        model = tiny_model("llama")
        train = lambda plan: [each.data.mul_(factor) for each in model.parameters()]  # noqa: E731
        return prune(model, BATCHES, amount=0.3, journal=tmp_path / "j", progress=False, on_step=train)

    first, before = trained(1.02), (tmp_path / "j").read_bytes()
    assert trained(1.02) == first
    assert (tmp_path / "j").read_bytes() == before, "nothing is measured twice"
    other = trained(0.9)
    (tmp_path / "j").unlink()
    assert [step.scores for step in other.steps] == [step.scores for step in trained(0.9).steps]


STATE_BYTES = 2 * 20 * 32 * 4  # one block's output for one batch


@pytest.mark.parametrize(
    # States before blocks 1 to 3 are wanted anew behind the removed mlp.2, or all that were not kept.
    ("max_state_bytes", "num_recomputed"),
    [(0, 3), (len(BATCHES) * 2 * STATE_BYTES, 3), (1 << 30, 1)],
)
def test_the_next_round_starts_from_what_is_known(max_state_bytes, num_recomputed):
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES, max_state_bytes=max_state_bytes)
    what_if.losses(CANDIDATES)
    before, heads = what_if.num_block_evaluations, what_if.num_head_evaluations
    remove(model, CANDIDATES[5].sublayers)  # mlp.2
    left = [each for each in CANDIDATES if each != CANDIDATES[5]]
    losses = what_if.losses(left)
    fresh = WhatIf(model, BATCHES).losses(left)
    assert losses.without == fresh.without
    assert losses.base == fresh.base
    suffixes = sum(NUM_BLOCKS - each.block for each in left)
    assert what_if.num_block_evaluations - before == len(BATCHES) * (num_recomputed + suffixes)
    assert what_if.num_head_evaluations - heads == len(BATCHES) * len(left)


def test_fewer_batches_measure_the_first_ones():
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES)
    with what_if.narrowed(0.3):
        screened = what_if.losses(CANDIDATES[:2])
    assert screened.without == WhatIf(model, BATCHES[:1]).losses(CANDIDATES[:2]).without
    assert screened.base_sequences.shape == (2,)
    count = what_if.num_block_evaluations
    what_if.losses(CANDIDATES[:1])
    assert what_if.num_block_evaluations == count + 2 * 2 * NUM_BLOCKS, "the first batch is known"
