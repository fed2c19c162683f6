"""Corrections for what goes, against the same done at run time by hooks, and against plain least squares."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from lit_prune.callbacks import SublayerPruneCallback

import lit_prune
from lit_prune.__main__ import main
from lit_prune.anatomy import CORRECTIONS, find_sublayers
from lit_prune.data import token_windows
from lit_prune.errors import LitPruneError, PlanError
from lit_prune.export import save
from lit_prune.healing import create_compensation, fold_factor
from lit_prune.measure import WhatIf
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.pruning import apply_plan, compensate_plan, prune
from lit_prune.surgery import mute, output_projections, remove
from tests import naive
from tests.tiny import tiny_model
from tests.zoo import ZOO

TOKENS = torch.randint(3, 128, (48, 20), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": TOKENS[:24]}, {"input_ids": TOKENS[24:]}]
WITH_EXPERTS = ("mixtral", "gpt_oss", "llama4", "deepseek_v3")
SCALED = [
    name
    for name, each in ZOO.items()
    if "scale" in CORRECTIONS[each.form] and each.tower is None and "moe" not in name and name not in WITH_EXPERTS
]
EXPERTS = "does not end in one linear layer"


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("architecture", sorted(ZOO))
def test_without_its_output_projection_a_sublayer_adds_nothing(architecture):
    model = tiny_model(architecture)
    found = output_projections(model)
    anatomy = find_sublayers(model)
    assert {each.kind for each in found} >= {"attention"}
    for sublayer in (each for each in found if each.block == 1):
        if anatomy[sublayer].output != anatomy[sublayer].path:
            continue  # a norm behind it would make something of nothing
        reference = tiny_model(architecture)
        with naive.zeroed(reference, architecture, [(sublayer.kind, sublayer.block)]):
            expected = logits(reference)
        module = model.get_submodule(found[sublayer])
        kept = {name: each.detach().clone() for name, each in module.named_parameters()}
        with torch.no_grad():
            for each in module.parameters():
                each.zero_()
        assert torch.allclose(logits(model), expected, atol=1e-6), sublayer
        module.load_state_dict(kept)


@contextmanager
def stretched(model, architecture, sublayer, factor):
    """The stream times a factor in the place of a sublayer, by hooks on its block."""
    specimen = ZOO[architecture]
    block = model.get_submodule(f"{specimen.blocks}.{sublayer.block}")
    if sublayer.kind == "attention" or "parallel" in specimen.form:
        handle = block.register_forward_pre_hook(
            lambda _, args, kwargs: ((factor * args[0], *args[1:]), kwargs), with_kwargs=True
        )
    else:
        handle = block.register_forward_hook(
            lambda _, __, out: (factor * out[0], *out[1:]) if isinstance(out, tuple) else factor * out
        )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("architecture", SCALED)
def test_a_folded_factor_is_the_factor_on_the_stream(architecture, kind):
    model, sublayer = tiny_model(architecture), SublayerId(1, kind)
    with mute(model, [sublayer]):
        plain = logits(model)
        with stretched(model, architecture, sublayer, 1.25):
            expected = logits(model)
    fold_factor(model, sublayer, 1.25)
    remove(model, [sublayer])
    found = logits(model)
    change = (expected - plain).abs().max()
    assert change > 1e-2, "the reference must change something"
    assert (found - expected).abs().max() < 2e-3 * max(1, change), "the norms' epsilon is the one difference"


def test_the_factor_is_the_mean_ratio_of_lengths():
    model, sublayer = tiny_model("llama"), SublayerId(2, "attention")
    states = []
    layer = model.model.layers[2]
    handles = [
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0])),
        layer.self_attn.register_forward_hook(lambda _, __, out: states.append(out[0])),
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    before, added = states
    expected = ((before + added).norm(dim=-1) / before.norm(dim=-1)).mean().item()
    found = create_compensation("scale")(WhatIf(model, BATCHES), sublayer)
    assert found["factor"] == pytest.approx(expected, rel=1e-5)


def test_the_linear_map_is_the_least_squares_map():
    model, reference = tiny_model("llama"), tiny_model("llama")
    seen = {}
    layer = reference.model.layers[1]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.__setitem__("read", args[0])),
        layer.mlp.register_forward_hook(lambda _, __, out: seen.__setitem__("added", out)),
        layer.register_forward_pre_hook(lambda _, args: seen.__setitem__("stream", args[0])),
    ]
    logits(reference)
    for handle in handles:
        handle.remove()
    read, added = seen["read"].flatten(0, 1).double(), seen["added"].flatten(0, 1).double()
    root = (seen["stream"].flatten(0, 1).double() + added).square().mean(dim=-1, keepdim=True).rsqrt()
    strength = 1.0 * (root * read).square().sum(dim=0).mean()
    ridge = strength.sqrt() * torch.eye(read.shape[1], dtype=torch.float64)
    rows = torch.cat([root * read, ridge])
    targets = torch.cat([root * added, torch.zeros(len(ridge), added.shape[1], dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, targets).solution

    before = model.model.layers[1].self_attn.o_proj.weight.detach().clone()
    done = create_compensation({"name": "linear", "ridges": [1.0]})(WhatIf(model, BATCHES), SublayerId(1, "mlp"))
    change = model.model.layers[1].self_attn.o_proj.weight.detach() - before
    assert done["folded_into"] == "attention.1"
    assert 0 < done["explained"] < 1
    assert torch.allclose(change.T.double(), expected, atol=1e-4)


def test_a_map_that_does_not_hold_on_other_sequences_is_left_out():
    model = tiny_model("llama")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    # Two sequences to fit on, one of other tokens to check: 32 directions for 6 tokens, almost without a ridge.
    tokens = torch.tensor([[5, 9], [17, 3], [40, 41], [90, 91]])
    done = create_compensation({"name": "linear", "ridges": [1e-6]})(
        WhatIf(model, [{"input_ids": tokens}]), SublayerId(2, "mlp")
    )
    assert done == {"explained": 0.0}
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("name", ["scale", "linear", "bias"])
def test_rounds_score_the_compensated_model_and_the_folder_loads(architecture, name, tmp_path):
    model = tiny_model(architecture)
    batches = [{"input_ids": naive.own_text(model, 8, 40)}, *BATCHES]
    losses = []
    plan = prune(
        model,
        batches,
        amount=0.3,
        compensate=name,
        progress=False,
        on_step=lambda plan: losses.append(naive.mean_loss(model, batches)),
    )
    assert len(plan.steps) > 2
    for step, loss in zip(plan.steps[1:], losses, strict=False):
        assert step.nll_before == pytest.approx(loss, abs=1e-4)
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    assert plan.compensation["name"] == name
    again = lit_prune.load(save(model, tmp_path / "out", plan=plan))
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


def test_a_bias_that_a_stock_model_lacks_is_the_mean_output():
    model, reference = tiny_model("llama"), tiny_model("llama")
    outputs = []
    handle = reference.model.layers[2].self_attn.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    logits(reference)
    handle.remove()
    mean = outputs[0].flatten(0, 1).mean(dim=0)
    assert create_compensation("bias")(WhatIf(model, BATCHES), SublayerId(2, "attention"))["folded_into"] == "mlp.1"
    assert torch.allclose(model.model.layers[1].mlp.down_proj.bias, mean, atol=1e-5)
    remove(model, [SublayerId(2, "attention")])
    handle = reference.model.layers[2].self_attn.register_forward_hook(
        lambda _, __, out: (mean.expand_as(out[0]), *out[1:])
    )
    assert torch.allclose(logits(model), logits(reference), atol=1e-4)


class Killed(Exception):
    pass


def test_a_killed_search_goes_on_with_its_corrections(tmp_path):
    def run(on_step=lambda plan: None, journal=tmp_path / "journal.jsonl"):
        model = tiny_model("llama")
        plan = prune(model, BATCHES, amount=0.4, compensate="linear", progress=False, journal=journal, on_step=on_step)
        return plan, model

    def kill(plan):
        if len(plan.steps) == 2:
            raise Killed

    expected, whole = run(journal=None)
    with pytest.raises(Killed):
        run(kill)
    lines = len((tmp_path / "journal.jsonl").read_text().splitlines())
    found, model = run()
    assert found.removed == expected.removed
    assert torch.equal(logits(model), logits(whole))
    evaluated = sum(line.count('"nll"') for line in (tmp_path / "journal.jsonl").read_text().splitlines()[lines:])
    third_on = sum(2 * (1 + len(step.scores)) for step in expected.steps[2:])
    assert evaluated <= third_on, "the first two rounds are not measured again"


def test_a_plan_repeats_factors_and_refuses_maps():
    model, again = tiny_model("llama"), tiny_model("llama")
    plan = prune(model, BATCHES, amount=0.3, compensate="scale", progress=False)
    apply_plan(again, plan)
    assert torch.equal(logits(again), logits(model))
    plan = prune(tiny_model("llama"), BATCHES, amount=0.3, compensate="linear", progress=False)
    with pytest.raises(PlanError, match=r"compensation 'linear'.*uncompensated=True"):
        apply_plan(tiny_model("llama"), plan)
    plain = tiny_model("llama")
    remove(plain, plan.removed)
    found = apply_plan(again := tiny_model("llama"), plan, uncompensated=True)
    assert found.compensation == {}
    assert not any(step.compensation for step in found.steps)
    assert torch.equal(logits(again), logits(plain))


@pytest.mark.parametrize("name", ["scale", "linear"])
def test_a_plan_is_compensated_as_the_search_did_and_on_other_text(name):
    model, again, other = (tiny_model("llama") for _ in range(3))
    plan = prune(model, BATCHES, amount=0.3, compensate=name, progress=False)
    found = compensate_plan(again, plan, BATCHES, name)
    assert torch.equal(logits(again), logits(model))
    assert found.steps == plan.steps
    assert found.compensation["calibration"]["num_sequences"] == sum(len(each["input_ids"]) for each in BATCHES)
    compensate_plan(other, plan, BATCHES[:1], name)
    assert not torch.equal(logits(other), logits(model))
    with pytest.raises(PlanError):
        compensate_plan(tiny_model("llama", num_hidden_layers=6), plan, BATCHES, name)
    with pytest.raises(LitPruneError, match="nothing to compensate with"):
        compensate_plan(tiny_model("llama"), plan, BATCHES, "none")


def test_apply_measures_a_compensation_anew(model_folder, text, tmp_path, capsys):
    options = ["--data", str(text), "--window", "16", "--device", "cpu"]
    pruned = str(tmp_path / "pruned")
    assert main(["prune", str(model_folder), "--output", pruned, "--amount", "0.3", *options]) == 0
    made = ["apply", pruned, str(model_folder), "--output", str(tmp_path / "made")]
    assert main([*made, "--compensate", "linear", "--num_windows", "20", *options]) == 0
    plan = PrunePlan.load(tmp_path / "made")
    assert plan.removed == PrunePlan.load(pruned).removed
    assert plan.compensation["name"] == "linear"
    assert plan.compensation["calibration"]["num_sequences"] == 20
    windows = token_windows([text.read_text()], lit_prune.load_tokenizer(str(model_folder)), 16)
    drawn = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:20]]
    expected = lit_prune.load(str(model_folder))
    compensate_plan(expected, plan, [{"input_ids": each} for each in drawn.split(4)], "linear")
    torch.testing.assert_close(logits(lit_prune.load(tmp_path / "made")), logits(expected))
    assert main([*made[:3], "--output", str(tmp_path / "x"), "--uncompensated", "true", "--compensate", "scale"]) == 2
    assert "leave it or compensate out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("architecture", "name", "match"),
    [
        ("mixtral", "linear", EXPERTS),
        ("olmo2", "scale", "cannot be folded exactly into a olmo2"),
        ("gemma2", "linear", "cannot be folded exactly into a gemma2"),
        ("llama", "sclae", "did you mean 'scale'"),
    ],
)
def test_what_cannot_be_folded_exactly_is_refused_before_any_work(architecture, name, match):
    model = tiny_model(architecture)
    before = F.mse_loss(logits(model), torch.zeros(()).expand_as(logits(model)))
    with pytest.raises(LitPruneError, match=match):
        prune(model, BATCHES, amount=0.2, compensate=name, progress=False)
    assert F.mse_loss(logits(model), torch.zeros(()).expand_as(logits(model))) == before


def test_a_training_takes_no_biases():
    with pytest.raises(LitPruneError, match="no checkpoint restores"):
        SublayerPruneCallback(0.2, compensate="bias")
