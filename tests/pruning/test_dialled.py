"""Sizes between a pruned model and its dense one, tensor by tensor."""

import copy
import math

import pytest
import torch

from lit_prune import PrunePlan, dial, front_of, load, refit, save
from lit_prune.__main__ import main
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import BudgetError, ModelError, PlanError
from lit_prune.pruning import prune
from lit_prune.surgery import mute, removed_sublayers
from tests.tiny import character_tokenizer, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 99, (2, 16), generator=torch.Generator().manual_seed(0))}]


def pruned(architecture="llama", compensate="none", granularity=None, amount=0.4):
    model = tiny_model(architecture)
    options = {"scorer": "random", "compensate": compensate, "progress": False}
    plan = prune(model, BATCHES, amount=amount, granularity=granularity or "sublayer", **options)
    return model, plan


def changed(model, by=0.5):
    """As a healing does, all weights that stay are other ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)
    return model


def names_of(plan, number):
    return [str(sublayer) for step in plan.steps[:number] for sublayer in step.removed.sublayers]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "cohere"])
def test_at_both_ends_are_the_two_models(architecture):
    model, plan = pruned(architecture)
    changed(model)
    for number, expected in ((len(plan.steps), model), (0, tiny_model(architecture))):
        between = tiny_model(architecture)
        dial(model, between, plan, num_steps=number)
        assert removed_sublayers(between) == removed_sublayers(expected)
        found = between.state_dict()
        assert all(torch.equal(found[name], values) for name, values in expected.state_dict().items())


def test_between_them_lie_the_weights_by_the_share_that_is_gone():
    model, plan = pruned(granularity="mlp")
    changed(model)
    dense = tiny_model("llama").state_dict()
    sizes = [step.num_parameters for step in plan.steps]
    went = [f"model.layers.{step.removed.sublayers[0].block}." for step in plan.steps]
    assert len(sizes) > 1
    for number in range(len(sizes) + 1):
        between = tiny_model("llama")
        kept = dial(model, between, plan, num_steps=number)
        assert sorted(map(str, removed_sublayers(between))) == sorted(names_of(plan, number))
        assert kept.budget["reached"] == sum(sizes[:number]) == kept.num_removed_parameters
        share = sum(sizes[:number]) / sum(sizes)
        for name, values in between.state_dict().items():
            of_mlp = ".mlp." in name or "post_attention_layernorm" in name
            is_gone = of_mlp and name.startswith(tuple(went[:number]))
            is_back = of_mlp and name.startswith(tuple(went[number:]))
            factor = math.sqrt(1 - share) if is_back and "down_proj" in name and number else 1
            assert bool(values.numel()) != is_gone
            expected = factor * (dense[name] + (0 if is_back else 0.5 * share))
            assert is_gone or torch.allclose(values, expected, atol=1e-6), name


def test_the_amount_is_the_most_that_is_gone():
    model, plan = pruned()
    whole = plan.model.num_parameters
    sizes = [step.num_parameters / whole for step in plan.steps]
    for number in range(len(sizes)):
        reached = sum(sizes[:number])
        assert len(dial(model, tiny_model("llama"), plan, amount=reached).steps) == number
        almost = reached + 0.99 * sizes[number]
        assert len(dial(model, tiny_model("llama"), plan, amount=almost).steps) == number
    with pytest.raises(BudgetError, match="are gone from the pruned model, not 90.0%"):
        dial(model, tiny_model("llama"), plan, amount=0.9)
    for wrong in ({}, {"amount": 0.1, "num_steps": 1}, {"amount": -0.1}, {"num_steps": len(sizes) + 1}):
        with pytest.raises(BudgetError):
            dial(model, tiny_model("llama"), plan, **wrong)


@torch.no_grad()
def test_a_restored_block_works_where_blocks_were_closed_up():
    model, plan = pruned(granularity="block", amount=0.5)
    assert len(model.model.layers) < 4
    between, dense = tiny_model("llama"), tiny_model("llama")
    kept = dial(model, between, plan, num_steps=1, strength=lambda _: 1.0)
    with mute(dense, kept.removed):
        expected = dense(**BATCHES[0]).logits
    assert torch.allclose(between(**BATCHES[0]).logits, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "cohere"])
def test_what_is_back_adds_as_much_of_its_output_as_its_strength_says(architecture):
    model, plan = pruned(architecture)
    between, dense = tiny_model(architecture), tiny_model(architecture)
    kept = dial(model, between, plan, num_steps=1, strength=lambda share: share / 4)
    factor = (1 - kept.num_removed_parameters / plan.num_removed_parameters) / 4

    def weakened(_, args, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    for sublayer in plan.removed[len(kept.removed) :]:
        dense.get_submodule(find_sublayers(dense)[sublayer].output).register_forward_hook(weakened)
    with mute(dense, kept.removed):
        expected = dense(**BATCHES[0]).logits
    assert torch.allclose(between(**BATCHES[0]).logits, expected, atol=1e-5)


def refitted(plan, number, batches):
    model = tiny_model("llama")
    found = refit(model, front_of(plan, model, num_steps=number), batches, progress=False)
    return model, found


@pytest.mark.parametrize("is_given", [True, False])
def test_with_text_a_front_is_refitted_and_what_healing_changed_is_added(is_given):
    batches = [{"input_ids": torch.randint(3, 99, (4, 24), generator=torch.Generator().manual_seed(i))} for i in (1, 2)]
    plan = pruned(granularity="mlp")[1]
    model, whole = refitted(plan, len(plan.steps), batches)
    before = copy.deepcopy(model)
    changed(model)  # by a half, which a healing has made
    expected, found = refitted(plan, 1, batches)
    between = tiny_model("llama")
    given = {"before": before if is_given else None, "calibration": {"source": "some"}}
    kept = dial(model, between, whole, num_steps=1, batches=batches, **given)
    assert any(facts["ridge"] is not None for facts in kept.compensation["refitted"].values())
    assert kept.compensation["refitted"] == found.compensation["refitted"]
    assert kept.compensation["calibration"]["source"] == "some"
    share = found.num_removed_parameters / plan.num_removed_parameters
    names, weights = {name for name, values in before.state_dict().items() if values.numel()}, between.state_dict()
    assert weights.keys() > names, "some are back"
    for name, values in expected.state_dict().items():
        change = 0.5 * share if name in names and values.numel() else 0.0
        assert torch.allclose(weights[name], values + change, atol=1e-5), name
    with pytest.raises(ModelError, match="which this model still has"):
        dial(model, tiny_model("llama"), whole, num_steps=1, batches=batches, before=tiny_model("llama"))
    ends = tiny_model("llama")
    dial(model, ends, whole, num_steps=len(plan.steps), batches=batches)
    assert all(torch.equal(values, model.state_dict()[name]) for name, values in ends.state_dict().items())


def test_biases_that_were_added_shrink_with_what_is_gone():
    model, plan = pruned(compensate="bias")
    names = [name for name in model.state_dict() if name.endswith(("o_proj.bias", "down_proj.bias"))]
    assert names
    between = tiny_model("llama")
    kept = dial(model, between, plan, num_steps=len(plan.steps) - 1)
    share = kept.num_removed_parameters / plan.num_removed_parameters
    for name in names:
        assert torch.allclose(between.state_dict()[name], share * model.state_dict()[name], atol=1e-6)
    none = tiny_model("llama")
    dial(model, none, plan, num_steps=0)
    assert not any(name.endswith("o_proj.bias") for name in none.state_dict())


def test_a_rule_of_ones_own_sees_what_is_in_front():
    model, plan = pruned()
    changed(model, 1.0)
    seen = []
    dial(model, tiny_model("llama"), plan, num_steps=1, rule=lambda gone: seen.append(gone) or 1.0)
    back = [is_back for _, is_back in seen[0].everywhere]
    assert back.count(False) == len(plan.steps[0].removed.sublayers)
    fronts = {len(gone.in_front) for gone in seen}
    assert len(plan.removed) in fronts  # of the head
    assert len(fronts) > 2
    assert all(gone.everywhere[: len(gone.in_front)] == gone.in_front for gone in seen)


def test_other_models_are_refused():
    model, plan = pruned()
    with pytest.raises(PlanError, match="made for"):
        dial(model, tiny_model("mistral"), plan, num_steps=1)
    with pytest.raises(ModelError, match="load both alike"):
        dial(model, tiny_model("llama").to(torch.bfloat16), plan, num_steps=1)
    with pytest.raises(ModelError, match="another shape"):
        dial(model, tiny_model("llama", intermediate_size=48), plan, num_steps=1)
    with pytest.raises(PlanError, match="give the model before that"):
        dial(model, model, plan, num_steps=1)


def test_the_command_line(tmp_path, capsys):
    dense, out, between = (str(tmp_path / name) for name in ("dense", "out", "between"))
    model, plan = pruned()
    tiny_model("llama").save_pretrained(dense)
    character_tokenizer().save_pretrained(dense)
    save(model, out, plan=plan, tokenizer=character_tokenizer())
    few = ["--window", "16", "--num_windows", "4", "--device", "cpu"]
    assert main(["dial", out, "--dense", dense, "--amount", "0.2", "--output", between, *few]) == 0
    kept = PrunePlan.load(between)
    assert 0 < kept.num_removed_parameters <= 0.2 * plan.model.num_parameters
    assert kept.model.name == dense
    assert set(map(str, removed_sublayers(load(between)))) == set(names_of(plan, len(kept.steps)))
    assert kept.compensation["refitted"]
    assert kept.compensation["calibration"]["source"] == "mixed"
    said = capsys.readouterr().out
    assert f"written: {between}" in said
    assert "output projections refitted" in said
    assert main(["dial", out, "--steps", "1", "--compensate", "scale", "--output", str(tmp_path / "none")]) == 2
    assert "refitted or left as it is" in capsys.readouterr().err
    none = ["--steps", "1", "--compensate", "none"]
    assert main(["dial", out, *none, "--before", out, "--output", str(tmp_path / "none")]) == 2
    assert main(["dial", out, "--dense", dense, *none, "--output", str(tmp_path / "one")]) == 0
    assert "refitted" not in PrunePlan.load(tmp_path / "one").compensation
    assert main(["dial", out, "--dense", dense, "--output", str(tmp_path / "none")]) == 2
    assert "either --amount" in capsys.readouterr().err
