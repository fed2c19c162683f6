"""Sequence classifiers and reward models, by their own loss on their own labels: held against transformers' own."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from lit_prune import load, prune
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import DataError, MeasureError
from lit_prune.evaluation import perplexity
from lit_prune.export import save
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.surgery import mute, removed_sublayers
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 128, (4, 12), generator=GENERATOR)
MASK = torch.ones_like(IDS)
IDS[0, 7:], MASK[0, 7:] = 1, 0
CANDIDATES = [Candidate.parse(each) for each in ("mlp.0", "attention.1", "mlp.1", "block.2")]
LABELS = {
    "classes": (3, None, torch.tensor([0, 2, 1, 1])),
    "rewards": (1, None, torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "several at a time": (3, None, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])),
    "several numbers": (2, "regression", torch.randn(4, 2, generator=GENERATOR)),
}


def classifier(name, architecture="llama"):
    number, problem, labels = LABELS[name]
    config = tiny_model(architecture).config
    config.num_labels, config.problem_type = number, problem
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(std=0.2) if each.ndim > 1 else None
    return model, {"input_ids": IDS, "attention_mask": MASK, "labels": labels}


@torch.no_grad()
def own_loss(model, batch):
    # transformers notes the kind of problem in the config at its first loss.
    before = model.config.problem_type
    loss = model(**batch, use_cache=False).loss.item()
    model.config.problem_type = before
    return loss


@pytest.mark.parametrize("options", [{}, {"forks": 2}, {"offload": True}], ids=str)
@pytest.mark.parametrize("name", LABELS)
def test_losses_are_those_of_transformers(name, options):
    model, batch = classifier(name)
    expected = {None: own_loss(model, batch)}
    for each in CANDIDATES:
        with mute(model, each.sublayers):
            expected[each] = own_loss(model, batch)
    losses = WhatIf(model, [batch], **options).losses(CANDIDATES)
    assert {None: losses.base, **losses.without} == pytest.approx(expected, abs=1e-5)
    assert losses.num_tokens == 4


@pytest.mark.parametrize("scorer", ["nri", "cosine", "taylor", "magnitude"])
def test_a_reward_model_is_pruned_with_its_head(tmp_path, scorer):
    model, batch = classifier("rewards", "qwen2")
    options = {"protect_first": 0, "protect_last": 0} if scorer in ("taylor", "magnitude") else {}
    plan = prune(model, [batch], amount=0.2, scorer={"name": scorer, **options}, progress=False)
    assert removed_sublayers(model)
    if scorer == "nri":
        assert plan.steps[-1].nll_after == pytest.approx(own_loss(model, batch), abs=1e-5)
    folder = save(model, tmp_path / "pruned", plan=plan)
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
        for loaded in (load(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()):
            assert set(find_sublayers(loaded).removed) == set(plan.removed)
            assert torch.equal(loaded(input_ids=IDS, attention_mask=MASK).logits, expected)
    assert "pipeline_tag: text-classification" in (folder / "README.md").read_text()
    with pytest.raises(MeasureError, match="gives logits of the shape"):
        perplexity(loaded, [{"input_ids": IDS}])


def test_gradients_are_those_of_its_own_loss():
    model, batch = classifier("classes")
    layer = model.model.layers[1]
    weights = [*layer.mlp.parameters(), *layer.post_attention_layernorm.parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(model(**batch).logits, batch["labels"]), weights)
    expected = sum((each * gradient).abs().sum().item() for each, gradient in zip(weights, gradients, strict=True))
    scorer = {"name": "taylor", "protect_first": 1, "protect_last": 2}
    plan = prune(model, [batch], amount=0.05, scorer=scorer, progress=False)
    assert plan.steps[0].scores["mlp.1"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"wants `labels` of a batch's sequences: classes \[4\], or numbers \[4, 3\]; found a NoneType"),
        (IDS, r"found torch.int64 \[4, 12\]"),
        (torch.ones(4), r"found torch.float32 \[4\]"),
        (torch.full((4,), -100), "masked"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    model, batch = classifier("classes")
    with pytest.raises(DataError, match=message):
        prune(model, [{**batch, "labels": labels}], amount=0.2, progress=False)


def test_what_needs_next_tokens_says_so_before_any_removal():
    model, batch = classifier("classes")
    with pytest.raises((DataError, MeasureError)):
        prune(model, [batch], amount=0.2, scorer="kl", progress=False)
    assert not removed_sublayers(model)
