"""Windows of several kinds of text, and of documents that other windows are not of."""

import itertools
import json
from collections import Counter

import pytest
import torch

from lit_prune.commands.options import Sample

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def texts(tmp_path):
    """Two files of documents: of either kind, every document is one letter in many places."""
    paths = []
    for name, letters in (("low", LETTERS), ("high", LETTERS.upper())):
        paths.append(str(tmp_path / f"{name}.jsonl"))
        rows = [json.dumps({"text": letter * 320}) + "\n" for letter in letters]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return paths


def documents(tokenizer, rows):
    """The documents that windows are of, with the number of windows of each."""
    return Counter(letter for row in rows for letter in set(tokenizer.decode(row)) & set(LETTERS + LETTERS.upper()))


def test_windows_that_judge_and_unseen_ones_are_of_other_documents(texts, tokenizer):
    sample = Sample(data=texts, window=32, num_windows=24)
    windows, unseen = sample.apart(tokenizer, num_judging=6, num_unseen=5)
    assert windows.shape == (24, 32)
    parts = [documents(tokenizer, rows) for rows in (windows[:18], windows[18:], *unseen.values())]
    for kind in (str.islower, str.isupper):
        own = [{letter for letter in part if kind(letter)} for part in parts]
        own = [letters for letters in own if letters]
        assert len(own) == 3
        for first, second in itertools.pairwise(own):
            assert len(first & second) <= 1  # that on the border
        assert not own[0] & own[2]
    assert {name: rows.shape for name, rows in unseen.items()} == {"low": (5, 32), "high": (5, 32)}
    assert all(letter.islower() for letter in documents(tokenizer, unseen["low"]))
    again, others = sample.apart(tokenizer, num_judging=6, num_unseen=5)
    assert torch.equal(windows, again)
    assert all(torch.equal(unseen[name], others[name]) for name in unseen)


def test_every_stretch_of_windows_holds_all_kinds_alike(texts, tokenizer):
    windows, unseen = Sample(data=texts, window=32, num_windows=20).apart(tokenizer, num_judging=4, num_unseen=0)
    assert not unseen
    for pair in windows.split(2):
        low, high = (tokenizer.decode(row) for row in pair)
        assert not any(letter in LETTERS.upper() for letter in low)
        assert not any(letter in LETTERS for letter in high)


def test_a_text_with_too_few_windows_gives_them_to_the_search(tmp_path, texts, tokenizer):
    short = tmp_path / "short.txt"
    short.write_text("0123456789" * 16)
    windows, unseen = Sample(data=[*texts, str(short)], window=32, num_windows=18).apart(
        tokenizer, num_judging=6, num_unseen=3
    )
    assert len(windows) == 6 + 6 + 5
    assert set(unseen) == {"low", "high"}
    alone = Sample(data=str(short), window=32, num_windows=3)
    assert torch.equal(alone.apart(tokenizer, num_judging=0, num_unseen=0)[0], alone.windows(tokenizer))
