"""Refitted projections, against plain least squares on what hooks of their own see, and against maps at run time."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import lit_prune
from lit_prune.anatomy import POST_NORM, find_sublayers
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.export import save
from lit_prune.healing import DenseTeacher, Refit, Solutions
from lit_prune.healing.regression import Moments
from lit_prune.loading.processes import processes_of_fabric
from lit_prune.measure import WhatIf, shares_of
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.pruning import compensate_plan, prune
from lit_prune.surgery import output_projections, remove
from tests import naive
from tests.architectures.report import capability
from tests.processes import in_torchrun
from tests.tiny import HIDDEN_SIZE, tiny_model
from tests.zoo import ZOO

TOKENS = torch.randint(3, 128, (48, 20), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": TOKENS[:20]}, {"input_ids": TOKENS[20:]}]
GONE = (SublayerId(1, "mlp"), SublayerId(2, "attention"))


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model(input_ids=tokens, use_cache=False).logits


def refitted(model, batches=BATCHES, gone=GONE, **options):
    teacher = DenseTeacher(model)
    remove(model, gone)
    what_if = WhatIf(model, batches)
    return Refit(**options).finish(what_if, teacher), what_if


@torch.no_grad()
def states(model, tokens, names):
    """What modules are given (`in`) and put out (`out`), by hooks, float64 [tokens, width]; first tokens left out."""
    seen = {}

    def keep(name, args, output):
        seen[name, "in"] = args[0]
        seen[name, "out"] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as hooks:
        for name in names:
            module = model.get_submodule(name)
            hooks.enter_context(
                module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: keep(name, args or (kwargs["hidden_states"],), output),
                    with_kwargs=True,
                )
            )
        logits(model, tokens)
    return {key: each.reshape(*tokens.shape, -1)[:, 1:].flatten(0, 1).double() for key, each in seen.items()}


def ridge_regression(inputs, outputs, weights, ridge, free=0):
    """By numpy's least squares on rows for the penalty, in float64; of the last `free` inputs nothing is penalised."""
    root = weights.sqrt()[:, None]
    bound = inputs.shape[1] - free
    strength = ridge * (root * inputs)[:, :bound].square().sum(dim=0).mean()
    penalty = torch.zeros(bound, inputs.shape[1], dtype=torch.float64)
    penalty[:, :bound] = strength.sqrt() * torch.eye(bound, dtype=torch.float64)
    rows = torch.cat([root * inputs, penalty])
    targets = torch.cat([root * outputs, torch.zeros(bound, outputs.shape[1], dtype=torch.float64)])
    return torch.from_numpy(np.linalg.lstsq(rows.numpy(), targets.numpy(), rcond=None)[0])


def test_a_planted_relation_is_found():
    generator = torch.Generator().manual_seed(0)
    inputs, planted = torch.randn(400, 24, generator=generator), torch.randn(24, 8, generator=generator)
    weights = torch.rand(400, generator=generator) + 0.5
    moments = Moments()
    for rows in torch.arange(400).split(90):
        moments.add(inputs[rows], inputs[rows] @ planted, weights[rows])
    expected = ridge_regression(inputs.double(), (inputs @ planted).double(), weights.double(), 0.0)
    assert torch.allclose(moments.solved(1e-9).double(), expected, atol=1e-5)
    assert torch.allclose(expected, planted.double(), atol=1e-5)


def test_the_first_two_projections_are_those_of_least_squares():
    """attention.1 for all that is removed right behind it, then mlp.2 for what is left, on what it reads by then."""
    model, dense, pruned = (tiny_model("llama") for _ in range(3))
    facts, _ = refitted(model, ridges=(0.3,))
    assert list(facts["refitted"]) == ["attention.1", "mlp.2", "attention.3", "mlp.3"]
    remove(pruned, GONE)
    steps = (("model.layers.1.self_attn.o_proj", "model.layers.2.self_attn"), ("model.layers.2.mlp.down_proj", ""))
    for path, _ in steps:
        reads_next = "model.layers.2.post_attention_layernorm" if "o_proj" in path else "model.layers.3"
        wanted = states(dense, TOKENS, [reads_next])[reads_next, "in"]
        own = states(pruned, TOKENS, [path, reads_next])
        inputs, missing = own[path, "in"], wanted - own[reads_next, "in"]
        change = ridge_regression(inputs, missing, 1 / wanted.square().mean(dim=-1), 0.3)
        weight = pruned.get_submodule(path).weight
        found = model.get_submodule(path).weight.detach().double() - weight.detach().double()
        assert torch.allclose(found.T, change, atol=1e-5)
        with torch.no_grad():
            weight.add_(change.T.to(weight))


def test_a_bias_is_an_intercept_that_no_ridge_shrinks():
    model, dense, pruned = (tiny_model("gpt2") for _ in range(3))
    refitted(model, ridges=(0.3,))
    remove(pruned, GONE)
    path = "transformer.h.1.attn.c_proj"
    wanted = states(dense, TOKENS, ["transformer.h.2.ln_2"])["transformer.h.2.ln_2", "in"]
    own = states(pruned, TOKENS, [path, "transformer.h.2.ln_2"])
    inputs = torch.cat([own[path, "in"], torch.ones(len(wanted), 1, dtype=torch.float64)], dim=1)
    missing = wanted - own["transformer.h.2.ln_2", "in"]
    change = ridge_regression(inputs, missing, 1 / wanted.square().mean(dim=-1), 0.3, free=1)
    found, before = model.get_submodule(path), pruned.get_submodule(path)
    assert torch.allclose((found.weight - before.weight).double(), change[:-1], atol=1e-5)
    assert torch.allclose((found.bias - before.bias).double(), change[-1], atol=1e-5)


@capability("refit")
def test_what_is_folded_is_the_map_at_run_time_and_nearer_to_the_dense_model(architecture, finds):
    model, pruned = tiny_model(architecture), tiny_model(architecture)
    if ZOO[architecture].form == POST_NORM:
        with pytest.raises(ModelError, match="refit is not possible"):
            prune(model, BATCHES, amount=0.2, compensate="refit", progress=False)
        assert not find_sublayers(model).removed, "refused before any work"
        finds("refused")
        return
    dense = logits(model)
    facts, what_if = refitted(model)
    remove(pruned, GONE)
    plain = logits(pruned)
    changes = {}
    anatomy = find_sublayers(model)
    norms = {each.output for each in anatomy.sublayers if each.output != each.path}
    for path in {*output_projections(pruned).values(), *norms}:
        before, after = pruned.get_submodule(path), model.get_submodule(path)
        if path in norms:
            ones = torch.ones(2, HIDDEN_SIZE)
            changes[path] = (after(ones) / before(ones)).detach()[0]
            continue
        delta = (after.weight - before.weight).detach()
        bias = None if before.bias is None else (after.bias - before.bias).detach()
        changes[path] = (delta if isinstance(before, Conv1D) else delta.T, bias)
    experts = [name for name, each in model.named_modules() if hasattr(each, "_apply_gate")]
    for name in experts:  # held against least squares below
        pruned.get_submodule(name).load_state_dict(model.get_submodule(name).state_dict())

    def applied(change, given, out):
        return (
            out * change
            if isinstance(change, Tensor)
            else out + given @ change[0] + (0 if change[1] is None else change[1])
        )

    with ExitStack() as hooks:
        for path, change in changes.items():
            hook = pruned.get_submodule(path).register_forward_hook(
                lambda _, args, out, change=change: applied(change, args[0], out)
            )
            hooks.enter_context(hook)
        torch.testing.assert_close(logits(model), logits(pruned), atol=1e-4, rtol=1e-3)
    assert F.mse_loss(logits(model), dense) < F.mse_loss(plain, dense)
    assert any(each["ridge"] for each in facts["refitted"].values())
    assert what_if.cost <= 4
    weights = dict(pruned.named_parameters())
    others = {name for name, value in model.named_parameters() if not torch.equal(value, weights[name])}
    assert {name.rpartition(".")[0] for name in others} <= {*changes, *experts}, "nothing else is changed"
    behind = {each.id for each in anatomy.sublayers if each.id > GONE[0]}
    left = {sublayer.kind for sublayer in behind - {*GONE} if not is_refitted(sublayer, facts["refitted"])}
    finds(f"all but {', '.join(sorted(left))}" if left else "all")


def is_refitted(sublayer, sites):
    """Whether a site has this sublayer in its name, in which those of parallel branches are joined."""
    return any(str(sublayer) in site.replace("+", " ").replace(",", " ").split() for site in sites)


def test_a_model_that_has_lost_nothing_stays_as_it_is():
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    facts, what_if = refitted(model, gone=())
    assert facts == {"refitted": {}}
    assert what_if.cost == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_hold_on_other_sequences_is_left_out():
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.named_parameters()}
    # Three sequences to fit on, one of other tokens to check: far fewer tokens than directions, almost without a ridge.
    tokens = torch.tensor([[5, 9, 7], [17, 3, 8], [40, 41, 6], [90, 91, 99]])
    facts, _ = refitted(model, [{"input_ids": tokens}], gone=[SublayerId(3, "mlp")], ridges=(1e-7,))
    assert facts["refitted"]["attention.3"]["ridge"] is None
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_count(side):
    plain, padded = tiny_model("llama"), tiny_model("llama")
    refitted(plain, [{"input_ids": TOKENS}])
    space = torch.full((len(TOKENS), 5), 1)
    parts = (space, TOKENS) if side == "left" else (TOKENS, space)
    mask = torch.cat([torch.full_like(part, int(part is TOKENS)) for part in parts], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    batch = {"input_ids": torch.cat(parts, dim=1), "attention_mask": mask, "position_ids": positions}
    refitted(padded, [batch])
    torch.testing.assert_close(logits(padded), logits(plain), atol=1e-4, rtol=1e-3)


def test_two_processes_give_the_weights_of_one(tmp_path):
    alone = tiny_model("llama")
    odd = [{"input_ids": TOKENS[:5]}, {"input_ids": TOKENS[5:6]}, {"input_ids": TOKENS[6:]}]
    refitted(alone, odd)

    def work():
        from lightning.fabric import Fabric

        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        model = tiny_model("llama")
        teacher, processes = DenseTeacher(model), processes_of_fabric(fabric)
        remove(model, GONE)
        Refit().finish(WhatIf(model, shares_of(WhatIf(model, odd).batches, processes), processes=processes), teacher)
        return logits(model, TOKENS[:2]).flatten().tolist()

    for found in in_torchrun(tmp_path, 2, work):
        torch.testing.assert_close(torch.tensor(found), logits(alone, TOKENS[:2]).flatten(), atol=1e-4, rtol=1e-3)


def test_a_search_ends_with_it_and_a_plan_repeats_it(tmp_path):
    model, plain, again = (tiny_model("llama") for _ in range(3))
    text = [{"input_ids": naive.own_text(model, 16, 40)}]
    plan = prune(model, BATCHES, amount=0.3, compensate="refit", compensate_on=text, progress=False)
    bare = prune(plain, BATCHES, amount=0.3, progress=False)
    assert plan.removed == bare.removed, "the search does not see it"
    assert plan.cost == bare.cost
    assert 0 < plan.compensation["cost"] <= 4
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    found = compensate_plan(again, plan, text, "refit")
    assert torch.equal(logits(again), logits(model))
    assert found.compensation["refitted"] == plan.compensation["refitted"]
    loaded = lit_prune.load(save(model, tmp_path / "out", plan=plan))
    assert torch.equal(logits(loaded), logits(model))


def test_too_few_sequences_are_refused():
    with pytest.raises(LitPruneError, match="holds back one sequence of 4, and there are 3"):
        refitted(tiny_model("llama"), [{"input_ids": TOKENS[:3]}])


class Killed(Exception):
    pass


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gptj"])
def test_a_killed_refit_goes_on_with_the_same_weights(architecture, tmp_path, monkeypatch):
    def run(journal):
        model = tiny_model(architecture)
        plan = prune(model, BATCHES, amount=0.3, compensate="refit", progress=False, journal=journal)
        return plan, model

    put, done = Solutions.put, []

    def put_two(self, site, found):
        if len(done) == 2:
            raise Killed
        done.append(site)
        put(self, site, found)

    expected, whole = run(tmp_path / "whole.jsonl")
    monkeypatch.setattr(Solutions, "put", put_two)
    with pytest.raises(Killed):
        run(tmp_path / "journal.jsonl")
    monkeypatch.setattr(Solutions, "put", put)
    found, model = run(tmp_path / "journal.jsonl")
    assert found.compensation["refitted"] == expected.compensation["refitted"]
    assert found.compensation["cost"] < expected.compensation["cost"]
    assert torch.equal(logits(model), logits(whole))
    assert not (tmp_path / "journal.refit").exists(), "what is done with is removed"


@pytest.mark.parametrize(("architecture", "ridge"), [("mixtral", 1.0), ("gpt_oss", 0.3)])
def test_an_expert_is_that_of_least_squares_on_its_own_tokens(architecture, ridge):
    """The last FFN of a model without the attention before it, for each expert's share of what the stream lacks."""
    model, dense, pruned = (tiny_model(architecture) for _ in range(3))
    gone = [SublayerId(3, "attention")]
    refitted(model, gone=gone, ridges=(ridge,))
    remove(pruned, gone)
    before = pruned.get_submodule("model.layers.2.mlp.experts")
    before.load_state_dict(model.get_submodule("model.layers.2.mlp.experts").state_dict())
    place = "model.layers.3.mlp.experts"
    experts = pruned.get_submodule(place)
    seen = {}
    with experts.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(args=args, kwargs=kwargs), with_kwargs=True
    ):
        own = states(pruned, TOKENS, ["model.norm"])["model.norm", "in"]
    wanted = states(dense, TOKENS, ["model.norm"])["model.norm", "in"]
    hidden, numbers, routing = (each.detach() for each in (*seen["args"], *seen["kwargs"].values()))
    later = (torch.arange(TOKENS.numel()) % TOKENS.shape[1] > 0).nonzero()[:, 0]
    hidden, numbers, routing = hidden[later], numbers[later], routing[later].double()
    share = routing.square() / routing.square().sum(dim=1, keepdim=True)
    compared = 0
    for number in range(experts.num_experts):
        rows, slots = torch.nonzero(numbers == number, as_tuple=True)
        with torch.no_grad():
            bias = experts.gate_up_proj_bias[number] if experts.has_bias else 0
            weight = experts.gate_up_proj[number]
            inner = experts._apply_gate(hidden[rows] @ (weight if experts.is_transposed else weight.T) + bias).double()
        factor = routing[rows, slots, None]
        inputs = torch.cat([factor * inner, factor.expand(-1, int(experts.has_bias))], dim=1)
        outputs = share[rows, slots, None] * (wanted - own)[rows]
        change = ridge_regression(inputs, outputs, 1 / wanted[rows].square().mean(dim=-1), ridge, int(experts.has_bias))
        delta = (model.get_submodule(place).down_proj[number] - experts.down_proj[number]).detach()
        found = (delta if experts.is_transposed else delta.T).double()
        if found.abs().max() > 0:
            compared += 1
            assert torch.allclose(found, change[: len(found)], atol=2e-5)
    assert compared
