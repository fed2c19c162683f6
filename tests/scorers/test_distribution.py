"""KL to the dense model against a naive sum over the vocabulary, through rounds of removal."""

import pytest
import torch

from benchmarks.naive import NaiveWhatIf
from lit_prune.errors import LitPruneError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.pruning import prune
from lit_prune.scorers import SCORERS
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in (3, 2)]
NAMES = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for kind, block in NAMES]


@torch.no_grad()
def probabilities(model, batches=BATCHES):
    return [model(**batch).logits.double().softmax(-1)[:, :-1] for batch in batches]


def naive_kl(dense, other):
    total = sum(float((p * (p / q).log()).sum()) for p, q in zip(dense, other, strict=True))
    return total / sum(p.shape[0] * p.shape[1] for p in dense)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2"])
def test_equals_the_naive_sum_over_rounds(architecture):
    model, reference = tiny_model(architecture), tiny_model(architecture)
    dense, scorer, what_if = probabilities(reference), SCORERS.create("kl"), WhatIf(model, BATCHES)
    gone = []
    for round_number in range(3):
        left = [name for name in NAMES if name not in gone]
        expected = {}
        for name in left:
            with naive.zeroed(reference, architecture, [*gone, name]):
                expected[Candidate.parse(f"{name[0]}.{name[1]}")] = naive_kl(dense, probabilities(reference))
        scores = scorer(what_if, list(expected), [])
        assert scores.importance == pytest.approx(expected, rel=1e-4, abs=1e-6), round_number
        with naive.zeroed(reference, architecture, gone):
            assert scores.zero == pytest.approx(naive_kl(dense, probabilities(reference)), rel=1e-4, abs=1e-6)
        best = min(expected, key=expected.__getitem__)
        gone.append((best.sublayers[0].kind, best.block))
        remove(model, best.sublayers)


def test_the_reference_is_dense_for_batches_that_were_not_looked_at_first():
    model, reference = tiny_model("llama"), tiny_model("llama")
    scorer, what_if = SCORERS.create("kl"), WhatIf(model, BATCHES)
    with what_if.narrowed(0.5):
        few = scorer(what_if, CANDIDATES[:1], []).importance[CANDIDATES[0]]
    with naive.zeroed(reference, "llama", [NAMES[0]]):
        found = probabilities(reference, BATCHES[:1])
    assert few == pytest.approx(naive_kl(probabilities(reference, BATCHES[:1]), found), rel=1e-4)
    remove(model, CANDIDATES[1].sublayers)
    dense = probabilities(reference)
    with naive.zeroed(reference, "llama", [NAMES[1], NAMES[0]]):
        expected = naive_kl(dense, probabilities(reference))
    assert scorer(what_if, CANDIDATES[:1], []).importance[CANDIDATES[0]] == pytest.approx(expected, rel=1e-4)


def test_padding_and_masked_labels_do_not_count():
    model, short = tiny_model("llama"), BATCHES[1]["input_ids"]
    filler = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.cat([torch.ones_like(short), filler], dim=1)
    padded = [{"input_ids": torch.cat([short, filler], dim=1), "attention_mask": mask}]
    plain = SCORERS.create("kl")(WhatIf(model, BATCHES[1:]), CANDIDATES, []).importance
    assert SCORERS.create("kl")(WhatIf(model, padded), CANDIDATES, []).importance == pytest.approx(plain, rel=1e-4)


def test_states_are_carried_and_the_work_is_counted():
    model = tiny_model("llama")
    ran = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    what_if = WhatIf(model, BATCHES)
    SCORERS.create("kl")(what_if, CANDIDATES, [])
    muted = len(BATCHES) * NUM_BLOCKS
    assert what_if.cost == (len(ran) + muted) / (len(BATCHES) * NUM_BLOCKS)
    assert what_if.cost == (NUM_BLOCKS + 2 * sum(range(1, NUM_BLOCKS + 1))) / NUM_BLOCKS


def test_a_search_that_was_killed_goes_on(tmp_path):
    options = {"amount": 0.2, "scorer": "kl", "progress": False}
    whole = prune(tiny_model("llama"), BATCHES, **options)
    journal = tmp_path / "search.jsonl"
    steps = []

    def stop(plan):
        steps.append(plan)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model("llama"), BATCHES, journal=journal, on_step=stop, **options)
    lines = len(journal.read_text().splitlines())
    again = prune(tiny_model("llama"), BATCHES, journal=journal, **options)
    assert [each.removed for each in again.steps] == [each.removed for each in whole.steps]
    assert [each.score for each in again.steps] == pytest.approx([each.score for each in whole.steps])
    # The dense model, and what was without the first removal, is known in the second round.
    assert lines == 1 + len(BATCHES) * (1 + len(whole.steps[0].scores) + len(whole.steps[1].scores))


def test_losses_and_divergences_do_not_mix():
    model = tiny_model("llama")
    what_if = WhatIf(model, BATCHES)
    first = SCORERS.create("kl")(what_if, CANDIDATES, []).importance
    losses = what_if.losses(CANDIDATES)
    assert losses.base == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)
    assert SCORERS.create("kl")(what_if, CANDIDATES, []).importance == first
    assert NaiveWhatIf(model, BATCHES).losses(CANDIDATES).without == pytest.approx(losses.without, abs=1e-5)


@pytest.mark.parametrize("agreement", ["greedy", "sampling"])
@pytest.mark.parametrize("normaliser", ["none", "active_parameters"])
def test_acceptance_is_how_often_the_dense_model_would_take_a_drafts_token(agreement, normaliser):
    model, reference = tiny_model("mixtral"), tiny_model("mixtral")
    dense, what_if = probabilities(reference), WhatIf(model, BATCHES)
    scorer = SCORERS.create("acceptance", agreement=agreement, normaliser=normaliser)

    def refused(gone):
        with naive.zeroed(reference, "mixtral", gone):
            pairs = list(zip(dense, probabilities(reference), strict=True))
        if agreement == "greedy":
            found = [(p.argmax(-1) != q.argmax(-1)).double() for p, q in pairs]
        else:
            found = [1 - torch.minimum(p, q).sum(-1) for p, q in pairs]
        return float(torch.cat([each.flatten() for each in found]).mean())

    # Of four experts a token goes through two: beside them norms, router and attention.
    sizes = {
        each: sum(weight.numel() for weight in model.get_submodule(each).parameters())
        for each in ("model.layers.0.self_attn", "model.layers.0.mlp")
    }
    idle = sum(weight.numel() for name, weight in model.named_parameters() if ".mlp.experts" in name) // NUM_BLOCKS // 2
    active = sum(weight.numel() for weight in model.parameters()) - NUM_BLOCKS * idle
    norm, gone = 32, []
    for _ in range(2):
        left = [name for name in NAMES if name not in gone]
        scores = scorer(what_if, [Candidate.parse(f"{kind}.{block}") for kind, block in left], []).importance
        for kind, block in left:
            own = sizes[f"model.layers.0.{'self_attn' if kind == 'attention' else 'mlp'}"]
            share = (own + norm - (idle if kind == "mlp" else 0)) / active
            fall = refused([*gone, (kind, block)]) - refused(gone)
            expected = fall if normaliser == "none" else fall / share if fall > 1e-9 else -share
            assert scores[Candidate.parse(f"{kind}.{block}")] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        best = min(scores, key=scores.__getitem__)
        own = sizes[f"model.layers.0.{'self_attn' if best.sublayers[0].kind == 'attention' else 'mlp'}"]
        active -= own + norm - (idle if best.sublayers[0].kind == "mlp" else 0)
        gone.append((best.sublayers[0].kind, best.block))
        remove(model, best.sublayers)


def test_an_agreement_that_nobody_knows_is_refused():
    with pytest.raises(LitPruneError, match="agreement must be one of greedy, sampling; found 'loud'"):
        SCORERS.create("acceptance", agreement="loud")
