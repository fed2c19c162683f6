"""Every figure against one that is worked out by hand, in float64, from hooks or from transformers' own outputs."""

import math

import pytest
import torch
import torch.nn.functional as F

from lit_prune.errors import MeasureError
from lit_prune.evaluation import Analysis, analyse
from lit_prune.loading.processes import Processes
from lit_prune.measure import WhatIf
from lit_prune.plan import SublayerId
from lit_prune.surgery import compact, remove
from tests import naive
from tests.evaluation import by_hand
from tests.scorers.test_stream import BATCHES, BY_HAND, pairs_by_hand
from tests.tiny import NUM_BLOCKS, tiny_model
from tests.zoo import ZOO

NAMES = [f"{kind}.{block}" for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
FINAL_NORMS = {
    "llama": "model.norm",
    "gpt2": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
    "opt, post-norm": None,
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
    "gemma2": "model.norm",
    "granite": "model.norm",
}


def analysed(model, batches=BATCHES, **options):
    return analyse(WhatIf(model, batches), **{"impact": False, **options})


def figures(found: Analysis, figure: str, part: str = "sublayers"):
    return {each.name: getattr(each, figure) for each in getattr(found, part)}


def mean(values):
    return float(torch.cat([each.flatten() for each in values]).mean())


@pytest.mark.parametrize("architecture", BY_HAND)
def test_norms_and_similarity_are_those_of_the_stream(architecture):
    model = tiny_model(architecture)
    pairs = {each.name: found for each, found in pairs_by_hand(model, architecture).items() if each.name in NAMES}
    found = analysed(model)
    expected = {name: mean([x.norm(dim=-1) for x, _ in each]) for name, each in pairs.items()}
    assert figures(found, "input_norm") == pytest.approx(expected, rel=1e-4)
    expected = {name: mean([(y - x).norm(dim=-1) for x, y in each]) for name, each in pairs.items()}
    assert figures(found, "output_norm") == pytest.approx(expected, rel=1e-4)
    expected = {name: mean([F.cosine_similarity(x, y, dim=-1) for x, y in each]) for name, each in pairs.items()}
    assert figures(found, "similarity") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", FINAL_NORMS)
def test_paths_are_the_terms_carried_through_the_norms(architecture):
    model = tiny_model(architecture)
    factor = 0.5 if architecture == "granite" else 1.0
    found = analysed(model, BATCHES[:1])
    terms = by_hand.logits(model, architecture, BATCHES[0], FINAL_NORMS[architecture], factor)
    top = sum(terms.values())[:, :-1].argmax(-1, keepdim=True)
    picked = {name: each[:, :-1].gather(-1, top)[..., 0] for name, each in terms.items()}
    expected = {name: each.mean().item() for name, each in picked.items()}
    assert set(figures(found, "logit", "paths")) == {"embedding", *NAMES, "biases"}
    assert figures(found, "logit", "paths") == pytest.approx(expected, abs=2e-5)
    margins = {name: picked[name] - each[:, :-1].mean(-1) for name, each in terms.items()}
    expected = {name: each.mean().item() for name, each in margins.items()}
    assert figures(found, "margin", "paths") == pytest.approx(expected, abs=2e-5)
    whole = sum(each.abs() for each in margins.values())
    expected = {name: (each.abs() / whole).mean().item() for name, each in margins.items()}
    assert figures(found, "share", "paths") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ZOO)
def test_the_parts_add_up_to_the_logit_of_every_architecture(architecture):
    model, batches = tiny_model(architecture), [{"input_ids": each["input_ids"].clamp(max=119)} for each in BATCHES]
    found = analysed(model, batches)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: seen.append(output[:, :-1].double()))
    with torch.no_grad():
        logits = [model(**each).logits[:, :-1] for each in batches]
    top = [each.argmax(-1, keepdim=True) for each in logits]
    expected = mean([each.gather(-1, token) for each, token in zip(seen, top, strict=True)])
    assert found.logit == pytest.approx(expected, abs=1e-5)
    assert sum(each.logit for each in found.paths) == pytest.approx(expected, abs=1e-4)
    assert sum(each.share for each in found.paths) == pytest.approx(1, abs=1e-6)
    assert found.loss == pytest.approx(naive.mean_loss(model, batches), abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "norm"), [("llama", "model.norm"), ("gptj", "transformer.ln_f"), ("gemma2", "model.norm")]
)
@torch.no_grad()
def test_the_lens_is_norm_and_head_on_the_states_of_transformers(architecture, norm):
    model = tiny_model(architecture)
    found = analysed(model)
    outputs = [model(**each, output_hidden_states=True) for each in BATCHES]
    targets = torch.cat([each["input_ids"][:, 1:].flatten() for each in BATCHES])
    final = torch.cat([each.logits[:, :-1].flatten(0, 1) for each in outputs]).double()
    cap = getattr(model.config, "final_logit_softcapping", None)
    assert [each.name for each in found.depths] == ["embedding", "block.0", "block.1", "block.2", "block.3"]
    for depth, each in enumerate(found.depths[:-1]):
        states = [one.hidden_states[depth] for one in outputs]
        early = torch.cat([model.lm_head(model.get_submodule(norm)(one))[:, :-1].flatten(0, 1) for one in states])
        early = early.double() if cap is None else (cap * torch.tanh(early.double() / cap))
        assert each.loss == pytest.approx(F.cross_entropy(early, targets).item(), abs=1e-4)
        assert each.agreement == pytest.approx((early.argmax(-1) == final.argmax(-1)).double().mean().item())
        kl = F.kl_div(early.log_softmax(-1), final.log_softmax(-1), reduction="batchmean", log_target=True)
        assert each.kl == pytest.approx(kl.item(), abs=1e-4)
        assert each.norm == pytest.approx(mean([one.norm(dim=-1) for one in states]), rel=1e-5)
    assert found.depths[-1].agreement == 1
    assert found.depths[-1].kl == pytest.approx(0, abs=1e-6)


def test_padding_and_ignored_labels_do_not_count():
    model = tiny_model("llama")
    ids = BATCHES[0]["input_ids"]
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, :5] = 0
    labels[1, :12] = -100
    labels[2] = -100
    found = analysed(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    alone = [
        analysed(model, [{"input_ids": ids[1:2], "labels": labels[1:2]}]),
        analysed(model, [{"input_ids": ids[:1, 5:]}]),
    ]
    assert found.num_tokens == 20 + 15
    assert found.num_predicted == 8 + 14
    for part, figure, numbers in (
        ("sublayers", "output_norm", (20, 15)),
        ("paths", "margin", (8, 14)),
        ("depths", "kl", (8, 14)),
    ):
        both = [figures(each, figure, part) for each in alone]
        expected = {
            name: sum(n * each[name] for n, each in zip(numbers, both, strict=True)) / sum(numbers) for name in both[0]
        }
        assert figures(found, figure, part) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "opt", "phi", "gpt_neox", "gemma2", "bloom", "mpt"])
def test_a_pruned_model_is_the_dense_one_with_outputs_zeroed(architecture):
    gone = [("attention", 0), ("mlp", 1), ("attention", 2), ("mlp", 2)]
    dense, pruned = tiny_model(architecture), tiny_model(architecture)
    remove(pruned, [SublayerId(block, kind) for kind, block in gone])
    compact(pruned)
    found = analysed(pruned)
    with naive.zeroed(dense, architecture, gone):
        expected = analysed(dense)
    left = [each for each in NAMES if tuple(each.split(".")) not in {(kind, str(block)) for kind, block in gone}]
    assert [each.name for each in found.sublayers] == left
    assert [each.name for each in found.depths] == ["embedding", "block.0", "block.1", "block.3"]
    for part, names, shown in (
        ("sublayers", left, ("input_norm", "output_norm", "similarity")),
        ("paths", ["embedding", *left, "biases"], ("logit", "margin", "share")),
        ("depths", ["embedding", "block.0", "block.1", "block.3"], ("norm", "loss", "agreement", "kl")),
    ):
        for figure in shown:
            both = [figures(each, figure, part) for each in (found, expected)]
            assert [both[0][name] for name in names] == pytest.approx([both[1][name] for name in names], abs=2e-5)


def test_impact_is_that_of_the_slow_way():
    model = tiny_model("llama")
    found = analysed(model, impact=True)
    for figure, by_share in (("ri", False), ("nri", True)):
        expected = naive.scores(tiny_model("llama"), "llama", BATCHES, [], by_share=by_share)
        by_name = {f"{kind}.{block}": score for (kind, block), score in expected.items()}
        assert figures(found, figure) == pytest.approx(by_name, rel=1e-3, abs=1e-5)
    assert set(figures(analysed(model), "ri").values()) == {None}


def test_one_pass_a_batch_and_nothing_stays_on_the_model():
    model = tiny_model("llama")
    calls = by_hand.module_calls(model, "llama", 1)
    hooks = {name: len(each._forward_hooks) + len(each._forward_pre_hooks) for name, each in model.named_modules()}
    what_if = WhatIf(model, BATCHES)
    analyse(what_if, impact=False)
    assert len(calls) == len(BATCHES)
    assert what_if.cost == 1
    after = {name: len(each._forward_hooks) + len(each._forward_pre_hooks) for name, each in model.named_modules()}
    assert after == hooks
    assert not any("forward" in each.__dict__ for each in model.modules())


def test_batches_of_several_processes_are_summed():
    """Two processes, one after the other: the first hands its sums to the second."""
    handed = []

    class Giving(Processes):
        def sum(self, tensor):
            handed.append(tensor)
            return tensor

    class Taking(Processes):
        def sum(self, tensor):
            return tensor + handed.pop(0)

    model = tiny_model("llama")
    analyse(WhatIf(model, BATCHES[:1], processes=Giving()), impact=False)
    found = analyse(WhatIf(model, BATCHES[1:], processes=Taking()), impact=False)
    expected = analysed(model)
    for part in ("sublayers", "depths", "paths"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            assert {**vars(one), "name": 0, "ri": 0, "nri": 0} == pytest.approx(
                {**vars(other), "name": 0, "ri": 0, "nri": 0}, abs=1e-5
            )
    assert found.num_tokens == expected.num_tokens == 100


def test_short_dtypes_round_and_still_add_up():
    found = analysed(tiny_model("llama").to(torch.bfloat16))
    assert sum(each.logit for each in found.paths) == pytest.approx(found.logit, rel=0.02)


def test_a_logit_that_is_no_sum_is_not_split():
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].tanh(),))
    found = analysed(model)
    assert found.paths == ()
    assert "is not the sum" in found.notes[0]
    assert found.sublayers
    assert math.isfinite(found.depths[0].kl)


def test_damaged_weights_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(math.inf)
    with pytest.raises(MeasureError, match="figures of mlp.2 are not finite"):
        analysed(model)
