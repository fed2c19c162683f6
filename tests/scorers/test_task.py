"""Task scores against one naive forward for each choice, without padding or batches."""

import json

import pytest
import torch

from lit_prune.errors import DataError, LitPruneError, MeasureError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.pruning import Pruner, prune
from lit_prune.scorers import SCORERS
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 100, (2, 20), generator=torch.Generator().manual_seed(1))}]
NAMES = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for kind, block in NAMES]
WORDS = ["fox", "lazy dog", "brown", "no", "jumps over", "quick", "the end", "a"]
COMPLETIONS = [{"prompt": f"{word}: say ", "completion": WORDS[-1 - n][:2]} for n, word in enumerate(WORDS)]
CHOICES = [
    {"prompt": f"{word}? ", "choices": WORDS[n % 3 : n % 3 + 2 + n % 2], "answer": n % 2}
    for n, word in enumerate(WORDS * 2)
]
LETTERS = [
    {"prompt": f"{word}? ", "choices": list("abcdef"), "answer": "abcdef"[n % 6]} for n, word in enumerate(WORDS)
]


@pytest.fixture
def task(tmp_path, tokenizer):
    """Writes a file of examples, and gives the options of the scorer that reads it."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def write(rows):
        (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return {"data": str(tmp_path / "task.jsonl"), "tokenizer": str(tmp_path / "tokenizer")}

    return write


@torch.no_grad()
def answered(model, tokenizer, prompt, choice):
    """Loss sum of the choice, its number of tokens, and whether each is the likeliest, one sequence at a time."""
    ids = tokenizer(prompt + choice, return_tensors="pt")["input_ids"]
    # One character is one token; the space that ends the prompts counts with the choice.
    number = len(choice) + prompt.endswith(" ")
    logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
    positions = range(ids.shape[1] - number, ids.shape[1])
    loss = -sum(float(logits[t - 1, ids[0, t]]) for t in positions)
    return loss, number, all(int(logits[t - 1].argmax()) == int(ids[0, t]) for t in positions)


@torch.no_grad()
def likeliest(model, tokenizer):
    """Examples whose completion is what the dense model would say: its likeliest token, where that is a character."""
    examples = []
    for prompt in [f"{word}{letter}" for word in WORDS for letter in "abc"]:
        logits = model(input_ids=tokenizer(prompt, return_tensors="pt")["input_ids"]).logits[0, -1]
        character = tokenizer.decode(int(logits.argmax()))
        if len(character) == 1 and tokenizer.convert_tokens_to_ids(character) == int(logits.argmax()):
            examples.append({"prompt": prompt, "completion": character})
    return examples


def by_hand(model, tokenizer, rows, metric):
    losses, tokens, wrong = 0.0, 0, 0
    for row in rows:
        choices = row.get("choices", [row.get("completion")])
        answer = row.get("answer", 0)
        answer = choices.index(answer) if isinstance(answer, str) else answer
        found = [answered(model, tokenizer, row["prompt"], choice) for choice in choices]
        losses, tokens = losses + found[answer][0], tokens + found[answer][1]
        if "completion" in row:
            wrong += not found[0][2]
        else:
            lengths = [len(choice) if metric == "accuracy_norm" else 1 for choice in choices]
            values = [-one[0] / length for one, length in zip(found, lengths, strict=True)]
            wrong += values.index(max(values)) != answer
    return losses / tokens if metric == "loss" else wrong / len(rows)


@pytest.mark.parametrize(("architecture", "rows", "metric"), [
    ("llama", COMPLETIONS, "loss"), ("llama", COMPLETIONS, "accuracy"), ("llama", LETTERS, "accuracy"),
    ("llama", CHOICES, "loss"), ("llama", CHOICES, "accuracy"), ("llama", CHOICES, "accuracy_norm"),
    ("gpt_neox", COMPLETIONS, "loss"), ("gpt_neox", CHOICES, "accuracy_norm"),
])  # fmt: skip
def test_equals_one_naive_forward_for_each_choice(task, tokenizer, rows, metric, architecture):
    model = tiny_model(architecture)
    if metric == "accuracy" and rows is COMPLETIONS:
        rows = likeliest(model, tokenizer)
    scores = SCORERS.create("task", **task(rows), metric=metric, batch_size=3)(WhatIf(model, BATCHES), CANDIDATES, [])
    expected = {}
    for name, candidate in zip(NAMES, CANDIDATES, strict=True):
        with naive.zeroed(model, architecture, [name]):
            expected[candidate] = by_hand(model, tokenizer, rows, metric)
    assert scores.importance == pytest.approx(expected, abs=1e-4)
    assert scores.zero == pytest.approx(by_hand(model, tokenizer, rows, metric), abs=1e-4)
    # The shortest choice mostly wins where lengths differ and are not made up for.
    assert len(set(expected.values())) > 1 or (rows is CHOICES and metric == "accuracy")


def test_rounds_after_removals_and_screens_on_the_first_examples(task, tokenizer):
    model = tiny_model("llama")
    what_if, scorer = WhatIf(model, BATCHES), SCORERS.create("task", **task(CHOICES), batch_size=4)
    scorer(what_if, CANDIDATES, [])
    remove(model, CANDIDATES[3].sublayers)
    reference = tiny_model("llama")
    with naive.zeroed(reference, "llama", [NAMES[3], NAMES[4]]):
        expected = by_hand(reference, tokenizer, CHOICES, "loss")
        # 16 examples of 2 or 3 choices are 16 batches of one; a quarter of them are 4.
        few = by_hand(reference, tokenizer, CHOICES[:4], "loss")
    assert scorer(what_if, [CANDIDATES[4]], []).importance[CANDIDATES[4]] == pytest.approx(expected, abs=1e-4)
    with what_if.narrowed(0.25):
        assert scorer(what_if, [CANDIDATES[4]], []).importance[CANDIDATES[4]] == pytest.approx(few, abs=1e-4)


def test_the_work_is_part_of_the_plans_cost_and_calibration_batches_do_not_run(task):
    model = tiny_model("llama")
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    what_if = WhatIf(model, BATCHES)
    SCORERS.create("task", **task(COMPLETIONS), batch_size=8)(what_if, CANDIDATES, [])
    assert 20 not in seen
    assert what_if.cost == (NUM_BLOCKS + 2 * sum(range(1, NUM_BLOCKS + 1))) / NUM_BLOCKS


def test_the_tokenizer_is_the_models_own_unless_another_is_named(task):
    options = task(COMPLETIONS)
    model, name = tiny_model("llama"), options.pop("tokenizer")
    with pytest.raises(LitPruneError, match="say tokenizer=NAME"):
        SCORERS.create("task", **options)(WhatIf(model, BATCHES), CANDIDATES, [])
    model.config.name_or_path = name
    assert SCORERS.create("task", **options)(WhatIf(model, BATCHES), CANDIDATES, []).importance


def test_a_search_that_was_killed_goes_on(task, tmp_path):
    options = {"amount": 0.2, "scorer": {"name": "task", **task(CHOICES)}, "progress": False}
    journal, found = tmp_path / "search.jsonl", []

    def stop(plan):
        found.append((plan.steps[0].removed, plan.steps[0].score, journal.read_text()))
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prune(tiny_model("llama"), BATCHES, journal=journal, on_step=stop, **options)
    # The second time, nothing was measured that had been.
    assert found[0] == found[1]
    assert found[0][2].count("\n") > len(CANDIDATES)
    task([{**each, "answer": 1 - each["answer"]} for each in CHOICES])
    with pytest.raises(MeasureError, match="another search: scorer_data "):
        prune(tiny_model("llama"), BATCHES, journal=journal, **options)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (CHOICES, {"metric": "f1"}, "metric must be one of loss, accuracy, accuracy_norm; found 'f1'"),
        (COMPLETIONS, {"metric": "accuracy_norm"}, "has completions; use accuracy or loss"),
        (COMPLETIONS, {"batch_size": 0}, "batch_size is 1 or more; found 0"),
    ],
)
def test_options_that_cannot_be_are_refused(task, rows, options, message):
    with pytest.raises(LitPruneError, match=message):
        Pruner(tiny_model("llama"), scorer={"name": "task", **task(rows), **options})


def test_examples_that_cannot_be_used_are_refused_before_any_pass(task, tmp_path):
    model = tiny_model("llama")
    with pytest.raises(DataError, match="cannot read the examples"):
        Pruner(model, scorer={"name": "task", "data": str(tmp_path / "none.jsonl")})
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    long = task([{"prompt": "a" * 200, "completion": "b"}])
    with pytest.raises(DataError, match="201 tokens.* 128"):
        SCORERS.create("task", **long)(WhatIf(model, BATCHES), CANDIDATES, [])
