"""One-pass scores of the residual stream against sums that are done by hand for each architecture."""

import math
from contextlib import contextmanager

import pytest
import torch

from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf, one_pass
from lit_prune.plan import Candidate
from lit_prune.pruning import Pruner, prune
from lit_prune.scorers import SCORERS
from lit_prune.searches import Budget
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model
from tests.zoo import ZOO

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in (3, 2)]
SUBLAYERS = [Candidate.parse(f"{kind}.{block}") for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
BLOCKS = [Candidate.parse(f"block.{block}") for block in range(NUM_BLOCKS)]
RUN = Candidate.together(BLOCKS[1:4])


def sequential(block, x, a, m):
    return (x, x + a), (x + a, x + a + m)


def parallel(block, x, a, m):
    return (x, x + a), (x, x + m)


def sandwich(block, x, a, m):
    middle = x + block.post_attention_layernorm(a)
    return (x, middle), (middle, middle + block.post_feedforward_layernorm(m))


def post_norm(block, x, a, m):
    middle = block.self_attn_layer_norm(x + a)
    return (x, x + a), (middle, middle + m)


def halved(block, x, a, m):
    return sequential(block, x, 0.5 * a, 0.5 * m)


def inside(block, x, a, m):
    return (x, a), (a, m)


BY_HAND = {
    "llama": sequential,
    "gpt2": sequential,
    "opt": sequential,
    "opt, post-norm": post_norm,
    "gpt_neox": parallel,
    "phi": parallel,
    "gemma2": sandwich,
    "olmo2": sandwich,
    "granite": halved,
    "bloom": inside,
}


def first(output):
    return (output[0] if isinstance(output, tuple) else output).detach().clone()


@contextmanager
def captured(model, architecture):
    """By block: its input, its output, and what its attention and mlp returned."""
    found, handles = {}, []

    def keep(name, pick):
        def hook(_, args, output):
            found[name] = first(pick(args, output))

        return hook

    for number, block in enumerate(model.get_submodule(ZOO[architecture].blocks)):
        modules = {kind: naive.module_of(model, architecture, (kind, number)) for kind in ("attention", "mlp")}
        handles.append(block.register_forward_pre_hook(lambda _, args, n=number: found.update({("x", n): first(args)})))
        handles.append(block.register_forward_hook(keep(("out", number), lambda args, output: output)))
        for kind, module in modules.items():
            handles.append(module.register_forward_hook(keep((kind, number), lambda args, output: output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def pairs_by_hand(model, architecture, batches=BATCHES):
    """For every batch and candidate, the stream before and after, [batch, seq, hidden] in float64."""
    blocks = model.get_submodule(ZOO[architecture].blocks)
    found = {each: [] for each in (*SUBLAYERS, *BLOCKS, RUN)}
    for batch in batches:
        with captured(model, architecture) as seen:
            model(**batch)
        for number, block in enumerate(blocks):
            x = seen["x", number]
            attention, mlp = (seen[kind, number].view_as(x) for kind in ("attention", "mlp"))
            both = BY_HAND[architecture](block, x, attention, mlp)
            for candidate, pair in zip(SUBLAYERS[2 * number : 2 * number + 2], both, strict=True):
                found[candidate].append(pair)
            found[BLOCKS[number]].append((x, seen["out", number]))
        found[RUN].append((seen["x", 1], seen["out", 3]))
    return {each: [(x.double(), y.double()) for x, y in pairs] for each, pairs in found.items()}


def angle(x, y):
    return math.acos(max(-1, min(1, float(x @ y / x.norm() / y.norm())))) / math.pi


def mean_over_tokens(pairs, function):
    values = [function(x[i, t], y[i, t]) for x, y in pairs for i in range(x.shape[0]) for t in range(x.shape[1])]
    return sum(values) / len(values)


def scored(model, scorer, candidates, batches=BATCHES, **options):
    return SCORERS.create(scorer, **options)(WhatIf(model, batches), candidates, []).importance


@pytest.mark.parametrize("architecture", BY_HAND)
def test_measures_of_sublayers_blocks_and_runs(architecture):
    model = tiny_model(architecture)
    by_hand = pairs_by_hand(model, architecture)
    candidates = [*SUBLAYERS, *BLOCKS, RUN]
    cosine = {each: mean_over_tokens(by_hand[each], lambda x, y: 1 - float(x @ y / x.norm() / y.norm()))
              for each in candidates}  # fmt: skip
    assert scored(model, "cosine", candidates) == pytest.approx(cosine, abs=1e-5)
    for norm, order in (("l1", 1), ("l2", 2)):
        expected = {each: mean_over_tokens(by_hand[each], lambda x, y, p=order: float((y - x).norm(p) / y.norm(p)))
                    for each in candidates}  # fmt: skip
        assert scored(model, "relative_norm", candidates, norm=norm) == pytest.approx(expected, rel=1e-4)
    error = {each: mean_over_tokens(by_hand[each], lambda x, y: float((y - x) @ (y - x) / len(x)))
             for each in candidates}  # fmt: skip
    assert scored(model, "sensitivity", candidates) == pytest.approx(error, rel=1e-4)


@torch.no_grad()
def block_outputs(model, architecture, number, gone):
    """What a block returns for the first batch with some of its own sublayers zeroed, [batch, seq, hidden]."""
    found = []
    block = model.get_submodule(f"{ZOO[architecture].blocks}.{number}")
    handle = block.register_forward_hook(lambda _, args, output: found.append(first(output).double()))
    with naive.zeroed(model, architecture, [(kind, number) for kind in gone]):
        model(**BATCHES[0], use_cache=False)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("architecture", [name for name in ZOO if ZOO[name].form != "post-norm"])
def test_every_architecture_by_zeroing_outputs(architecture):
    model, number = tiny_model(architecture), 2
    out = {gone: block_outputs(model, architecture, number, gone)
           for gone in ((), ("attention",), ("mlp",), ("attention", "mlp"))}  # fmt: skip
    neither, alone = out["attention", "mlp"], out[("attention",)]
    side_by_side = "parallel" in ZOO[architecture].form
    pairs = {
        Candidate.parse(f"attention.{number}"): (neither, out[("mlp",)]),
        Candidate.parse(f"mlp.{number}"): (neither, alone) if side_by_side else (out[("mlp",)], out[()]),
        Candidate.parse(f"block.{number}"): (neither, out[()]),
    }
    expected = {each: mean_over_tokens([pair], lambda x, y: float((y - x).norm() / y.norm()))
                for each, pair in pairs.items()}  # fmt: skip
    assert scored(model, "relative_norm", list(pairs), BATCHES[:1]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_block_influence_and_angles_at_the_last_token(architecture):
    model = tiny_model(architecture)
    by_hand = pairs_by_hand(model, architecture)
    candidates = [*BLOCKS, RUN]
    influence = {each: mean_over_tokens(by_hand[each], lambda x, y: 1 - float(x @ y / x.norm() / y.norm()))
                 for each in candidates}  # fmt: skip
    assert scored(model, "block_influence", candidates) == pytest.approx(influence, abs=1e-5)
    angles = {each: mean_over_tokens([(x[:, -1:], y[:, -1:]) for x, y in by_hand[each]], angle) for each in candidates}
    assert scored(model, "angular", candidates) == pytest.approx(angles, abs=1e-5)
    assert all(0 < each < 1 for each in angles.values())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("scorer", "candidates"), [("cosine", SUBLAYERS), ("angular", [*BLOCKS, RUN])])
def test_padding_does_not_count(side, scorer, candidates):
    model = tiny_model("llama")
    short = BATCHES[0]["input_ids"]
    filler = torch.zeros(3, 5, dtype=torch.long)
    order = (filler, short) if side == "left" else (short, filler)
    mask = torch.cat([(each is short) * torch.ones_like(each) for each in order], dim=1)
    padded = [{"input_ids": torch.cat(order, dim=1), "attention_mask": mask}, BATCHES[1]]
    assert scored(model, scorer, candidates, padded) == pytest.approx(scored(model, scorer, candidates), abs=1e-5)


@pytest.mark.parametrize(("scorer", "candidates"), [("cosine", SUBLAYERS), ("angular", [*BLOCKS, RUN])])
def test_a_sequence_without_labels_does_not_count(scorer, candidates):
    model = tiny_model("llama")
    ids = BATCHES[0]["input_ids"]
    labels = ids.clone()
    labels[1] = -100
    partly = labels.clone()
    partly[2, :10] = -100  # the prompt of an answer is text as well
    expected = scored(model, scorer, candidates, [{"input_ids": ids[[0, 2]]}])
    for each in (labels, partly):
        found = scored(model, scorer, candidates, [{"input_ids": ids, "labels": each}])
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "opt, post-norm", "gpt_neox"])
def test_a_score_does_not_depend_on_who_else_is_asked_for(architecture):
    model = tiny_model(architecture)
    candidates = [*SUBLAYERS, *BLOCKS, RUN]
    together = scored(model, "cosine", candidates)
    for each in candidates:
        assert scored(model, "cosine", [each]) == {each: together[each]}
    assert list(scored(model, "cosine", SUBLAYERS[::-2])) == SUBLAYERS[::-2]


def test_after_a_removal_the_rest_of_the_block_is_measured_again():
    model = tiny_model("llama")
    with naive.zeroed(model, "llama", [("attention", 1), ("mlp", 2), ("attention", 3), ("mlp", 3)]):
        by_hand = pairs_by_hand(model, "llama")
    remove(model, [one for name in ("attention.1", "mlp.2", "block.3") for one in Candidate.parse(name).sublayers])
    left = [Candidate.parse(name) for name in ("attention.0", "mlp.0", "mlp.1", "attention.2")]
    cosine = {each: mean_over_tokens(by_hand[each], lambda x, y: 1 - float(x @ y / x.norm() / y.norm()))
              for each in left}  # fmt: skip
    assert scored(model, "cosine", left) == pytest.approx(cosine, abs=1e-5)
    # All that is left of two blocks is a run of them.
    run = Candidate.parse("mlp.1+attention.2")
    ends = [(x, y) for (x, _), (_, y) in zip(by_hand[BLOCKS[1]], by_hand[BLOCKS[2]], strict=True)]
    expected = mean_over_tokens(ends, lambda x, y: 1 - float(x @ y / x.norm() / y.norm()))
    assert scored(model, "block_influence", [run])[run] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("scorer", "candidates"),
    [("block_influence", BLOCKS), ("cosine", SUBLAYERS), ("angular", [*BLOCKS, RUN]), ("relative_norm", SUBLAYERS)],
)
def test_one_pass_scores_all(scorer, candidates):
    model = tiny_model("llama")
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    what_if = WhatIf(model, BATCHES)
    SCORERS.create(scorer)(what_if, candidates, [])
    assert len(passes) == len(BATCHES)
    assert what_if.cost == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_a_search_may_ask_for_runs_and_gets_all_of_them_from_one_pass():
    model = tiny_model("llama")
    runs = [Candidate.together(BLOCKS[start : start + 2]) for start in range(NUM_BLOCKS - 1)]
    expected = scored(model, "angular", runs)
    seen = {}

    def search(score, candidates, history):
        seen.update(score(runs).importance)
        return score(candidates)

    pruner, what_if = Pruner(model, scorer="angular", search=search, granularity="block"), WhatIf(model, BATCHES)
    pruner.step(what_if, Budget(0.1, pruner.num_parameters))
    assert seen == expected
    assert what_if.cost == 2


def test_a_ceiling_measures_the_loss_of_what_was_chosen_alone():
    model = tiny_model("llama")
    batches = [{"input_ids": naive.own_text(model, 8, 40)}]
    plan = prune(model, batches, max_rise=1.0, scorer="cosine", progress=False)
    assert plan.steps
    assert all(step.nll_after - plan.steps[0].nll_before <= math.log(2) for step in plan.steps)
    assert plan.steps[-1].nll_after == pytest.approx(naive.mean_loss(model, batches), abs=1e-5)


def test_only_states_that_are_still_wanted_are_held(monkeypatch):
    model = tiny_model("llama", num_hidden_layers=12)
    held = []
    layers = [Candidate.parse(f"block.{block}") for block in range(12)]
    original = one_pass._Recorder._at

    def watched(self, point, hidden):
        original(self, point, hidden)
        held.append(len(self._states))

    monkeypatch.setattr(one_pass._Recorder, "_at", watched)
    scored(model, "block_influence", layers)
    assert max(held) == 1


@pytest.mark.parametrize(
    ("scorer", "names", "message"),
    [
        ("block_influence", ["mlp.1"], "block_influence is defined for whole blocks.* mlp.1 is none.*cosine"),
        ("angular", ["attention.1"], "angular is defined for whole blocks"),
        ("cosine", ["mlp.1+mlp.2"], r"mlp.1\+mlp.2 is neither one sublayer nor a run"),
        ("relative_norm", ["block.0+block.2"], "neither one sublayer nor a run"),
    ],
)
def test_what_a_method_does_not_define_is_refused_before_any_pass(scorer, names, message):
    model = tiny_model("llama")
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    with pytest.raises(LitPruneError, match=message):
        scored(model, scorer, [Candidate.parse(name) for name in names])


def test_weights_that_overflow_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(LitPruneError, match="are not finite"):
        scored(model, "cosine", SUBLAYERS)


def test_an_unknown_norm_is_refused():
    with pytest.raises(LitPruneError, match="norm must be l1 or l2; found 'l3'"):
        SCORERS.create("relative_norm", norm="l3")
