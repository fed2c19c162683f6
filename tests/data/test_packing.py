"""Whole documents in windows: what a model says of each is what it says of the document alone."""

import json
from itertools import pairwise

import pytest
import torch

from lit_prune.data import TextDataModule, calibration_batches, draw_windows, token_windows
from lit_prune.errors import DataError
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate
from lit_prune.training import LitCausalLM
from tests.tiny import character_tokenizer, tiny_model

TEXTS = ["one document", "another", "a third, somewhat longer", "x", "four", "the last of these documents is longest"]
WITHOUT = [Candidate.parse("attention.1"), Candidate.parse("mlp.0")]
SEES_ALL = ("opt", "bloom", "gpt_oss")
KEEPS_APART = ("llama", "gemma3", "gpt2", "deepseek_v3", "qwen3_moe", "llava (llama)")


def sums_of(model, batches):
    """Loss sums and number of tokens, of the model as it is and without a sublayer."""
    found = WhatIf(model, batches).losses(WITHOUT)
    return [value * found.num_tokens for value in (found.base, *found.without.values())], found.num_tokens


@pytest.mark.parametrize("name", [*KEEPS_APART, *SEES_ALL])
def test_a_model_keeps_documents_apart_or_is_refused(name):
    model, tokenizer = tiny_model(name), character_tokenizer()
    packed = calibration_batches(token_windows(TEXTS, tokenizer, 24, by_document=True), 2)
    if name in SEES_ALL:
        with pytest.raises(DataError, match="does not keep several documents in one sequence apart"):
            WhatIf(model, packed)
        return
    pieces = [text[start : start + 24] for text in TEXTS for start in range(0, len(text), 24)]
    alone = [tokenizer(piece, return_tensors="pt")["input_ids"] for piece in pieces if len(piece) > 1]
    expected = [sums_of(model, [{"input_ids": ids}]) for ids in alone]
    sums, number = sums_of(model, packed)
    assert number == sum(tokens for _, tokens in expected)
    assert sums == pytest.approx([sum(column) for column in zip(*(own for own, _ in expected), strict=True)], rel=1e-4)


def test_windows_hold_whole_documents_and_little_else():
    texts = [f"document {number} " * (1 + number % 3) for number in range(60)]
    tokenizer = character_tokenizer()
    for rows in (token_windows(texts, tokenizer, 64, by_document=True),
                 draw_windows(texts, tokenizer, window=64, most=4, seed=1, by_document=True)):  # fmt: skip
        (batch,) = calibration_batches(rows, len(rows))
        found = []
        for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
            starts = [*torch.where(positions == 0)[0].tolist(), len(ids)]
            found += [tokenizer.decode(ids[a:b]) for a, b in pairwise(starts)]
        documents = [each for each in found if each in texts]
        assert len(set(documents)) == len(documents)
        assert sum(map(len, documents)) > 0.75 * rows.numel()
        learned = (batch["labels"] != -100).sum()
        assert learned == sum(len(each) - 1 for each in documents)
    assert len(rows) == 4


def test_answers_alone_of_dialogues_that_do_not_see_each_other(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": f"question {number}? ", "completion": f"answer {number}."} for number in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = TextDataModule(file, tokenizer=character_tokenizer(), window=64, answers_only=True, by_document=True)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    learned = batch["labels"] != -100
    assert {"question", "answer"} & set(data.tokenizer.decode(batch["input_ids"][learned]).split()) == {"answer"}
    assert (batch["position_ids"] == 0).sum() > 2 * len(learned)


def test_a_trainer_refuses_it_before_the_first_step(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"document {number}"}) for number in range(40)))
    tokenizer = character_tokenizer()
    data = TextDataModule(file, tokenizer=tokenizer, window=32, by_document=True)
    data.trainer = type("Trainer", (), {"lightning_module": LitCausalLM(tiny_model("bloom"))})()
    with pytest.raises(DataError, match="leave by_document out"):
        data.setup("fit")
