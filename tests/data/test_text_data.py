"""Text sources, windows, share-out, loaders, fingerprints."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
import zstandard
from tokenizers.processors import TemplateProcessing
from torch import nn

from lit_prune.data import (
    TextDataModule,
    calibration_batches,
    draw_windows,
    drawn_windows,
    fingerprint,
    read_texts,
    share_out,
    token_windows,
)
from lit_prune.data import windows as windows_module
from lit_prune.errors import DataError
from tests.tiny import character_tokenizer


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def article(number: int) -> str:
    return "\n\n".join(f"Article {number}, paragraph {index}. " + "abc " * 20 for index in range(5))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "articles.jsonl", [{"text": article(number)} for number in range(40)])


class TestReadTexts:
    def test_mixed_has_equal_parts_of_four_kinds(self) -> None:
        texts = read_texts("mixed")
        topics = read_texts("builtin")
        of_help = [text for text in texts if any(topic.startswith(text) for topic in topics)]
        of_code = [text for text in texts if text not in of_help and "import " in text and "def " in text]
        for kind in (of_help, of_code):
            assert 0.2 < sum(map(len, kind)) / sum(map(len, texts)) < 0.3
        assert sum("William Morris" in text for text in texts) == 0, "nothing but the text itself"
        assert texts == read_texts("mixed")

    def test_builtin_is_sorted_and_repeatable(self) -> None:
        texts = read_texts("builtin")
        assert len(texts) > 50
        assert texts == read_texts("builtin")
        assert sum(map(len, texts)) > 200_000

    def test_text_file_is_one_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("one\n\ntwo")
        assert read_texts(tmp_path / "a.txt") == ["one\n\ntwo"]

    def test_json_lines_by_field(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", [{"body": "one\u2028more"}, {"body": "two"}])
        assert read_texts(str(path), field="body") == ["one\u2028more", "two"]

    def test_line_separator_inside_a_string_does_not_end_the_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "one\u2028more"}\n\n{"text": "two"}\n', encoding="utf-8")
        assert read_texts(tmp_path / "a.jsonl") == ["one\u2028more", "two"]

    def test_folder_reads_its_files_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("third")
        write_lines(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "second"}])
        (tmp_path / "c.md").write_text("ignored")
        assert read_texts(tmp_path) == ["first", "second", "third"]

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl, line 2: this is not JSON"),
            ("a.jsonl", '{"text": "x"}\n{"body": "y"}', "line 2: .*field 'text', .*found the fields body"),
            ("a.jsonl", "[1]", "line 1: .*found a list"),
            ("a.txt", " \n ", "holds no text"),
            ("a.md", "x", "expected a .txt or .jsonl file"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, file: str, content: str, message: str) -> None:
        (tmp_path / file).write_text(content)
        with pytest.raises(DataError, match=message):
            read_texts(tmp_path / file)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two \\ud83d"}\n"three \\ud83d\\ude00"'),
            ("a.json", b'[{"text": "one"}, {"text": "two \\ud83d", "id": 2}, "three \\ud83d\\ude00"]'),
            ("a.json", b'\xef\xbb\xbf{"text": "one"}\n{"text": "two \\ud83d"}\n{"text": "three \\ud83d\\ude00"}\n'),
            ("a.json", b'{"id": [1, 2, 3], "text": ["one", "two \\ud83d", "three \\ud83d\\ude00"]}'),
            (
                "a.jsonl.gz",
                gzip.compress(b'{"text": "one"}\n{"text": "two \\ud83d"}\n{"text": "three \xf0\x9f\x98\x80"}', mtime=0),
            ),
            (
                "a.jsonl.zst",
                zstandard.compress(b'{"text": "one"}\n{"text": "two \\ud83d"}\n')
                + zstandard.compress(b'{"text": "three \xf0\x9f\x98\x80"}'),
            ),
        ],
    )
    def test_files_as_people_have_them(self, tmp_path: Path, file: str, content: bytes, tokenizer: Any) -> None:
        (tmp_path / file).write_bytes(content)
        texts = read_texts(tmp_path / file)
        assert texts == ["one", "two \ufffd", "three \U0001f600"]
        assert tokenizer("".join(texts))["input_ids"]
        assert read_texts(tmp_path) == texts

    def test_plain_text_with_a_mark_and_packed(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\ntwo", mtime=0))
        (tmp_path / "info.json").write_text("{}")  # beside files of text, JSON may be anything
        assert read_texts(tmp_path) == ["one\ntwo"] * 2

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            (
                "a.jsonl",
                b'{"text": "x"}\n\n{"text": null}',
                "a.jsonl, line 3: the field 'text' holds null.*take the row out",
            ),
            ("a.json", b'[{"text": "x"}, {"text": 3}]', "a.json, entry 2: the field 'text' holds a int"),
            ("a.jsonl", b'{"text": "x"}\n{"text": ' + b"[" * 9000, "a.jsonl, line 2: this JSON is nested too deeply"),
            ("a.json", b'[{"text": "x"}, ', "a.json: this is not JSON"),
            ("a.txt", b"one\ntw\xe9", "a.txt: line 2 is no UTF-8.*iconv"),
            ("a.txt.gz", b"no gzip", "cannot read .*a.txt.gz"),
            ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-9], "cannot read .*a.txt.gz"),
            ("a.txt.zst", b"no frame", "cannot read .*a.txt.zst"),
            ("a.txt.zst", zstandard.compress(b"text")[:-3], "cannot read .*a.txt.zst"),
            ("a.parquet", b"PAR1", r"need pyarrow: pip install 'lit-prune\[hub\]'"),
        ],
    )
    def test_damage_is_told_with_its_line(
        self, tmp_path: Path, file: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_texts(tmp_path / file)

    def test_parquet(self, tmp_path: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"id": [1, 2], "text": ["one", "two"], "gap": ["x", None]})
        parquet.write_table(table, tmp_path / "a.parquet")
        assert read_texts(tmp_path / "a.parquet") == ["one", "two"]
        with pytest.raises(DataError, match="row 2: the field 'gap' holds null"):
            read_texts(tmp_path / "a.parquet", field="gap")
        with pytest.raises(DataError, match="row 1: .*field 'body', .*found the fields id, text, gap"):
            read_texts(tmp_path / "a.parquet", field="body")

    @pytest.mark.parametrize("ending", [".jsonl", ".txt", ".jsonl.gz", ".txt.zst", ".parquet"])
    def test_large_files_are_drawn_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
        monkeypatch.setattr("lit_prune.files.large_files.LARGE", 1000)
        monkeypatch.setattr("lit_prune.files.large_files.STRETCH", 100)
        letters = random.Random(0)
        rows = [f"document {number} {letters.randbytes(8 * (number % 7)).hex()}" for number in range(3000)]
        lines = rows if ending.startswith(".txt") else [json.dumps({"text": row}) for row in rows]
        file, content = tmp_path / f"a{ending}", "\n".join(lines).encode()
        if ending == ".parquet":
            parquet = pytest.importorskip("pyarrow.parquet")
            table = pytest.importorskip("pyarrow").table({"text": rows})
            parquet.write_table(table, file, row_group_size=100)
        else:
            pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(file.suffix, bytes)
            file.write_bytes(pack(content[:99]) + pack(content[99:]))  # as two that were put together
        drawn = read_texts(file, enough=2000, seed=1)
        assert 2000 <= sum(map(len, drawn)) < 4000
        found = [line for text in drawn for line in text.splitlines()]
        assert set(found) <= set(rows)
        assert len(set(found)) == len(found), "nothing is there twice"
        numbers = [int(row.split()[1]) for row in found]
        assert max(numbers) > (200 if file.suffix in (".gz", ".zst") else 2000), "of all that is looked at"
        assert read_texts(file, enough=2000, seed=1) == drawn != read_texts(file, enough=2000, seed=2)
        assert len(read_texts(file)) == (1 if ending.startswith(".txt") else 3000)

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(DataError, match="cannot read"):
            read_texts(tmp_path / "a.txt")

    def test_missing_file_and_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no file"):
            read_texts(tmp_path / "none.txt")
        with pytest.raises(DataError, match="holds no"):
            read_texts(tmp_path)

    def test_split_of_a_local_source_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match="no hub data set"):
            read_texts(tmp_path / "a.txt", split="train")

    def test_hub_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"lit-prune\[hub\]"):
            read_texts("wikitext", name="wikitext-2-raw-v1")


class FakeHub(ModuleType):
    """Stands for the `datasets` package, which tests do not need."""

    def __init__(self, **splits: list[str]) -> None:
        super().__init__("datasets")
        self.splits = splits

    def get_dataset_split_names(self, source: str, name: str | None) -> list[str]:
        return list(self.splits)

    def load_dataset(self, source: str, name: str | None, split: str, **options: Any) -> Rows:
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r}")
        self.asked = {"builder": source, **options}
        return Rows(self.splits[split], 0)


class Rows:
    """A streamed data set, which counts the rows that were fetched."""

    def __init__(self, texts: list[str], fetched: int) -> None:
        self.texts, self.fetched = texts, fetched

    def shuffle(self, *, seed: int, buffer_size: int) -> Rows:
        assert buffer_size > 1
        self.texts = random.Random(seed).sample(self.texts, len(self.texts))
        return self

    def __iter__(self) -> Iterator[dict[str, str]]:
        for text in self.texts:
            self.fetched += 1
            yield {"text": text}


class TestHub:
    def test_rows_come_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", FakeHub(test=["", " = Title = ", "text"]))
        assert read_texts("wikitext", name="raw", split="test") == ["", " = Title = ", "text"]
        with pytest.raises(DataError, match=r"'wikitext'.*split train.*Unknown split"):
            read_texts("wikitext")

    def test_no_more_is_fetched_than_is_wanted(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
        hub = FakeHub(train=[article(each) for each in range(3000)])
        rows = Rows(hub.splits["train"], 0)
        monkeypatch.setattr(hub, "load_dataset", lambda *_, **options: rows if options["streaming"] else None)
        monkeypatch.setitem(sys.modules, "datasets", hub)
        drawn = drawn_windows("owner/set", tokenizer, window=16, wanted=4, seed=1)
        assert drawn.shape == (4, 16)
        assert rows.fetched < 100

    def test_files_of_a_data_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = FakeHub(train=["text"])
        monkeypatch.setitem(sys.modules, "datasets", hub)
        assert read_texts("hf://datasets/owner/set/en/*.json.gz") == ["text"]
        assert hub.asked == {"builder": "json", "data_files": "hf://datasets/owner/set/en/*.json.gz"}
        assert read_texts("hf://datasets/owner/set/a.parquet", enough=3) == ["text"]
        assert hub.asked["builder"] == "parquet"
        with pytest.raises(DataError, match="expected the ending of"):
            read_texts("hf://datasets/owner/set/en/*")

    def test_own_splits_are_kept(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
        hub = FakeHub(train=["a" * 64], validation=["b" * 64], test=["c" * 64])
        monkeypatch.setitem(sys.modules, "datasets", hub)
        data = TextDataModule("owner/set", tokenizer=tokenizer, window=16)
        data.setup()
        letters = {part: tokenizer.decode(data.windows(part)[0])[0] for part in ("train", "val", "test")}
        assert letters == {"train": "a", "val": "b", "test": "c"}

    def test_train_alone_is_shared_out(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
        monkeypatch.setitem(sys.modules, "datasets", FakeHub(train=[article(each) for each in range(30)]))
        data = TextDataModule("owner/set", tokenizer=tokenizer, window=16)
        data.setup()
        assert all(len(data.windows(part)) for part in ("train", "val", "test"))


class TestTokenWindows:
    def test_are_the_text_in_order_without_overlap(self, tokenizer: Any) -> None:
        windows = token_windows(["hello world", "again"], tokenizer, 4)
        assert windows.dtype == torch.long
        assert tokenizer.decode(windows.flatten()) == "hello world\n\naga"

    def test_every_window_begins_with_the_bos_of_the_tokenizer(self) -> None:
        with_bos = character_tokenizer()
        with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        windows = token_windows(["abcdefghij"], with_bos, 4)
        assert windows[:, 0].tolist() == [0, 0, 0]
        assert with_bos.decode(windows[:, 1:].flatten()) == "abcdefghi"

    def test_an_eos_at_the_end_is_no_bos(self) -> None:
        with_eos = character_tokenizer()
        with_eos.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        assert with_eos.decode(token_windows(["abcdefgh"], with_eos, 4).flatten()) == "abcdefgh"

    def test_says_nothing_of_the_models_length(self, caplog: pytest.LogCaptureFixture) -> None:
        token_windows(["word " * 50], character_tokenizer(model_max_length=16), 8)
        assert "longer than" not in caplog.text

    def test_too_short(self, tokenizer: Any) -> None:
        with pytest.raises(DataError, match="5 tokens, shorter than one window of 16"):
            token_windows(["hello"], tokenizer, 16)
        with pytest.raises(DataError, match="predicts nothing"):
            token_windows(["hello"], tokenizer, 1)
        for stride in (0, 5):
            with pytest.raises(DataError, match="from 1 to the 4 tokens"):
                token_windows(["hello world"], tokenizer, 4, stride)


class Counting:
    """A tokenizer that knows how many characters it was given."""

    def __init__(self) -> None:
        self.inner, self.given, self.longest = character_tokenizer(), 0, 0

    def __call__(self, text: str, **options: Any) -> Any:
        self.given, self.longest = self.given + len(text), max(self.longest, len(text))
        return self.inner(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class TestDrawWindows:
    TEXTS: ClassVar = [f"{number} " + "word of a text\n" * (number % 5) for number in range(400)]

    def test_a_text_as_one_is_drawn_from_as_ever(self, tokenizer: Any) -> None:
        tokens = torch.tensor(tokenizer("\n\n".join(self.TEXTS))["input_ids"])
        windows = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(3))
        drawn = draw_windows(self.TEXTS, tokenizer, window=16, most=9, seed=3)
        assert torch.equal(drawn, windows[order[:9]])
        drawn = draw_windows(self.TEXTS, tokenizer, window=16, most=9, seed=3, in_order=True)
        assert torch.equal(drawn, windows[order[:9].sort().values])

    @pytest.mark.parametrize("texts", [TEXTS, ["".join(TEXTS)], ["", *TEXTS[:9], "x" * 500, "", *TEXTS]])
    def test_of_a_long_one_only_what_is_wanted_is_tokenised(
        self, texts: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(windows_module, "LONG", 1000)
        joined, counting = "\n\n".join(texts), Counting()
        drawn = draw_windows(texts, counting, window=16, most=20, seed=3)  # type: ignore[arg-type]
        assert drawn.shape == (20, 16)
        assert counting.given <= 20 * 16 * windows_module.ROOM < len(joined)
        found = [joined.find(counting.decode(each)) for each in drawn]
        assert min(found) >= 0
        in_order = draw_windows(texts, counting, window=16, most=20, seed=3, in_order=True)  # type: ignore[arg-type]
        assert sorted(drawn.tolist()) == sorted(in_order.tolist())
        assert not torch.equal(drawn, draw_windows(texts, counting, window=16, most=20, seed=4))  # type: ignore[arg-type]

    @pytest.mark.parametrize("texts", [TEXTS, ["".join(TEXTS)], ["", *TEXTS[:9], "x" * 500, "", *TEXTS]])
    def test_all_of_a_long_one_comes_in_pieces(self, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        expected = token_windows(texts, character_tokenizer(), 16)
        monkeypatch.setattr(windows_module, "LONG", 1000)
        monkeypatch.setattr(windows_module, "PIECE", 200)
        counting = Counting()
        assert torch.equal(token_windows(texts, counting, 16), expected)  # type: ignore[arg-type]
        assert counting.longest <= 200
        # More than a text has stretches for: all windows are looked at.
        assert len(draw_windows(texts, counting, window=16, most=10**6, seed=0)) == len(expected)  # type: ignore[arg-type]


class TestShareOut:
    def test_many_paragraphs_of_one_document_take_no_time(self) -> None:
        parts = share_out(["a paragraph\n\n" * 200_000], seed=0)
        assert sum(text.count("paragraph") for part in parts.values() for text in part) == 200_000

    def test_every_document_once_in_about_the_right_shares(self) -> None:
        texts = [f"{number} " + "x" * (number * 7 % 90) for number in range(200)]
        parts = share_out(texts, seed=3)
        assert sorted(text for part in parts.values() for text in part) == sorted(texts)
        total = sum(map(len, texts))
        shares = {part: sum(map(len, found)) / total for part, found in parts.items()}
        assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)
        assert parts == share_out(texts, seed=3)
        assert parts != share_out(texts, seed=4)

    def test_one_document_is_cut_at_paragraphs(self) -> None:
        paragraphs = [f"paragraph {number} " + "y" * 50 for number in range(100)]
        parts = share_out(["\n \n".join(paragraphs)])
        found = [paragraph for part in parts.values() for text in part for paragraph in text.split("\n\n")]
        assert sorted(found) == sorted(paragraphs)
        assert all(len(part) >= 2 for part in parts.values())

    def test_too_little_to_share(self) -> None:
        with pytest.raises(DataError, match="cannot share 1 dialogues, or paragraphs of text"):
            share_out(["all in one line"])


class TestTextDataModule:
    @pytest.mark.parametrize(
        "wrong",
        [
            *(
                {name: number}
                for name in ("window", "batch_size", "train_windows", "test_windows")
                for number in (0, -2)
            ),
            *({"seed": number} for number in (-1, 10**20)),
            {"num_workers": -1},
        ],
    )
    def test_numbers_are_checked_before_anything_is_read(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=f"{next(iter(wrong))}.* found .*{next(iter(wrong.values()))}"):
            TextDataModule("nowhere.txt", **wrong)

    def test_parts_are_disjoint_and_repeatable(self, source: Path, tokenizer: Any) -> None:
        def documents(part: str, **options: Any) -> set[str]:
            data = TextDataModule(source, tokenizer=tokenizer, window=64, **options)
            data.setup()
            text = tokenizer.decode(data.windows(part).flatten())
            return {piece.split(",")[0] for piece in text.split("Article ")[1:] if "," in piece}

        train, val, test = (documents(part) for part in ("train", "val", "test"))
        assert len(train) > len(val) + len(test)
        assert not train & val
        assert not train & test
        assert not val & test
        assert test == documents("test")
        assert test != documents("test", seed=1)

    def test_limits_draw_windows_of_the_part(self, source: Path, tokenizer: Any) -> None:
        whole = TextDataModule(source, tokenizer=tokenizer, window=32, val_windows=None)
        some = TextDataModule(source, tokenizer=tokenizer, window=32, val_windows=5)
        whole.setup()
        some.setup("validate")
        all_rows = [tuple(row) for row in whole.windows("val").tolist()]
        positions = [all_rows.index(tuple(row)) for row in some.windows("val").tolist()]
        assert len(positions) == 5
        assert positions == sorted(positions)
        assert positions != list(range(5))

    def test_batches(self, source: Path, tokenizer: Any) -> None:
        data = TextDataModule(source, tokenizer=tokenizer, window=32, batch_size=4, val_windows=6)
        data.setup("fit")
        first, last = data.val_dataloader()
        assert first["input_ids"].shape == (4, 32)
        assert last["input_ids"].shape == (2, 32)
        assert torch.equal(first["labels"], first["input_ids"])
        assert first["labels"].data_ptr() != first["input_ids"].data_ptr()
        assert torch.equal(torch.cat([first["input_ids"], last["input_ids"]]), data.windows("val"))

    def test_loaders_leave_the_random_state_alone(self, source: Path, tokenizer: Any) -> None:
        data = TextDataModule(source, tokenizer=tokenizer, window=32)
        before = torch.random.get_rng_state()
        data.setup()
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            list(loader)
        assert torch.equal(before, torch.random.get_rng_state())

    def test_order_of_training_depends_on_seed_and_epoch_alone(self, source: Path, tokenizer: Any) -> None:
        data = TextDataModule(source, tokenizer=tokenizer, window=32, seed=7)
        data.setup("fit")
        sampler, again = (data.train_dataloader().sampler for _ in range(2))
        first = list(sampler)
        assert sorted(first) == list(range(len(data.windows("train"))))
        sampler.set_epoch(3)
        again.set_epoch(3)
        assert list(sampler) == list(again) != first

    def test_processes_share_a_step_of_one(self, source: Path, tokenizer: Any) -> None:
        data = TextDataModule(source, tokenizer=tokenizer, window=32, seed=7)
        data.setup("fit")
        whole = list(data.train_dataloader().sampler)
        orders = []
        for rank in range(2):
            data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
            orders.append(list(data.train_dataloader().sampler))
        assert [index for pair in zip(*orders, strict=True) for index in pair][: len(whole)] == whole

    def test_no_tokenizer(self, source: Path) -> None:
        with pytest.raises(DataError, match="no tokenizer"):
            TextDataModule(source).setup()

    def test_tokenizer_by_name(self, source: Path, tokenizer: Any, tmp_path: Path) -> None:
        tokenizer.save_pretrained(tmp_path / "model")
        data = TextDataModule(source, tokenizer=str(tmp_path / "model"), window=32)
        data.setup("test")
        assert data.windows("test").shape[1] == 32

    def test_short_part_is_named(self, tmp_path: Path, tokenizer: Any) -> None:
        path = write_lines(tmp_path / "a.jsonl", [{"text": "abcdefgh"}] * 20)
        with pytest.raises(DataError, match=r"the val part of .*shorter than one window"):
            TextDataModule(path, tokenizer=tokenizer, window=64).setup()

    def test_hyperparameters_hold_no_tokenizer_object(self, source: Path, tokenizer: Any) -> None:
        assert "tokenizer" not in TextDataModule(source, tokenizer=tokenizer).hparams
        assert TextDataModule(source, tokenizer="gpt2").hparams["tokenizer"] == "gpt2"


class Recorder(L.LightningModule):
    """Remembers the tokens that it was trained with."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = nn.Linear(1, 1)
        text_config = SimpleNamespace(max_position_embeddings=context)
        self.model.config = SimpleNamespace(get_text_config=lambda decoder: text_config)
        self.seen: list[torch.Tensor] = []

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        pass

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["input_ids"])
        return self.model(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"
)
class TestInTheTrainer:
    def trainer(self, folder: Path, epochs: int) -> L.Trainer:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        return L.Trainer(default_root_dir=folder, max_epochs=epochs, accelerator="cpu", **quiet)

    def test_tokenizer_of_the_module_and_new_order_every_epoch(
        self, source: Path, tokenizer: Any, tmp_path: Path
    ) -> None:
        module = Recorder(tokenizer, context=64)
        data = TextDataModule(source, window=64, train_windows=8, batch_size=8)
        self.trainer(tmp_path, 2).fit(module, data)
        first, second = module.seen
        assert not torch.equal(first, second)
        assert fingerprint([{"input_ids": first.sort(dim=0).values}]) == fingerprint(
            [{"input_ids": second.sort(dim=0).values}]
        )

    def test_resumed_epoch_sees_what_an_unbroken_run_sees(self, source: Path, tokenizer: Any, tmp_path: Path) -> None:
        def run(epochs: int, ckpt: Path | None = None) -> Recorder:
            module = Recorder(tokenizer, context=64)
            trainer = self.trainer(tmp_path, epochs)
            trainer.fit(module, TextDataModule(source, window=64, train_windows=8), ckpt_path=ckpt)
            trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
            return module

        unbroken = run(2)
        run(1)
        torch.manual_seed(99)
        resumed = run(2, tmp_path / "1.ckpt")
        assert torch.equal(resumed.seen[-1], unbroken.seen[-1])

    def test_window_beyond_the_context(self, source: Path, tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="window of 128 tokens exceeds the model's context of 64"):
            self.trainer(tmp_path, 1).fit(Recorder(tokenizer, context=64), TextDataModule(source, window=128))


class TestFingerprint:
    def test_does_not_depend_on_batch_size(self) -> None:
        windows = torch.arange(24).view(6, 4)
        prints = [fingerprint(calibration_batches(windows, size)) for size in (1, 4, 6)]
        assert prints[0] == prints[1] == prints[2]
        assert prints[0]["num_sequences"] == 6
        assert prints[0]["num_tokens"] == 24
        assert len(prints[0]["sha256"]) == 64

    def test_tells_tokens_labels_order_and_shape_apart(self) -> None:
        windows = torch.arange(24).view(6, 4)
        masked = {"input_ids": windows, "labels": windows.masked_fill(windows == 3, -100)}
        others = [windows.view(4, 6), windows.flip(0), windows + 1]
        prints = {fingerprint(calibration_batches(each, 2))["sha256"] for each in (windows, *others)}
        prints.add(fingerprint([masked])["sha256"])
        prints.add(fingerprint([{"input_ids": windows}])["sha256"])
        assert len(prints) == 6

    def test_stays_as_it_is(self) -> None:
        # Plans written earlier hold such values.
        expected = hashlib.sha256(b"3:" + struct.pack("<6q", 1, 2, 3, 1, 2, -100)).hexdigest()
        batch = {"input_ids": torch.tensor([[1, 2, 3]], dtype=torch.int32), "labels": torch.tensor([[1, 2, -100]])}
        assert fingerprint([batch])["sha256"] == expected

    def test_batch_without_tokens(self) -> None:
        with pytest.raises(DataError, match="input_ids"):
            fingerprint([{"tokens": torch.ones(1, 1)}])
