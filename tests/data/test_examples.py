import json

import pytest

from lit_prune.data import Example, example_batches, read_examples
from lit_prune.errors import DataError
from tests.tiny import character_tokenizer


def written(folder, *rows):
    path = folder / "task.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_both_forms_are_read(tmp_path):
    path = written(tmp_path, {"prompt": "a", "completion": "b"}, "", {"prompt": "c", "completion": "d", "id": 7})
    assert read_examples(path) == [Example("a", ("b",), 0), Example("c", ("d",), 0)]
    path = written(tmp_path, {"prompt": "a", "choices": ["x", "y"], "answer": 1},
                   {"prompt": "b", "choices": ["x", "y", "z"], "answer": "z"})  # fmt: skip
    assert read_examples(path) == [Example("a", ("x", "y"), 1), Example("b", ("x", "y", "z"), 2)]


def test_sequences_are_prompt_and_choice_with_the_choice_as_labels(tokenizer):
    examples = [Example("ab ", ("cd", "e"), 0), Example("a", ("b", "c"), 1)]
    first, second = example_batches(examples, tokenizer, batch_size=3)
    a, b, c, d, e, space = (tokenizer.convert_tokens_to_ids(each) for each in "abcde ")
    assert first["input_ids"].tolist() == [[a, b, space, c, d], [a, b, space, e, 0]]
    assert first["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    # The space before the answer belongs to it, as subword tokenizers have it.
    assert first["labels"].tolist() == [[-100, -100, space, c, d], [-100, -100, space, e, -100]]
    assert second["input_ids"].tolist() == [[a, b], [a, c]]


def test_a_tokenizer_with_bos_puts_it_first():
    tokenizer = character_tokenizer()
    tokenizer.add_bos_token = True
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    (batch,) = example_batches([Example("a", ("b",), 0)], tokenizer, 1)
    assert batch["input_ids"][0].tolist() == [0, *tokenizer.convert_tokens_to_ids(["a", "b"])]
    assert batch["labels"][0].tolist()[:2] == [-100, -100]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "holds no examples"),
        (("{",), "line 1: this is not JSON"),
        (("[" * 9000,), "line 1: this JSON is nested too deeply"),
        (({"prompt": "a", "completion": "b"}, {"completion": "b"}), "line 2: expected"),
        (([1],), "line 1: expected"),
        (({"prompt": "a", "choices": ["x"], "answer": 0},), "two choices at least"),
        (({"prompt": "a", "choices": ["x", 3], "answer": 0},), "line 1: expected"),
        (({"prompt": "a", "choices": ["x", "y"], "answer": 2},), "0 to 1, or its text; found 2"),
        (({"prompt": "a", "choices": ["x", "y"], "answer": True},), "found True"),
        (({"prompt": "a", "choices": ["x", "y"], "answer": "z"},), "found 'z'"),
        (({"prompt": "a", "completion": "b"}, {"prompt": "a", "choices": ["x", "y"], "answer": 0}), "mixes"),
    ],
)
def test_damaged_files_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_examples(written(tmp_path, *rows))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read the examples"):
        read_examples(tmp_path / "none.jsonl")


@pytest.mark.parametrize("example", [Example("", ("b",), 0), Example("a", ("",), 0)])
def test_nothing_to_predict_is_refused(tokenizer, example):
    with pytest.raises(DataError, match="needs a prompt, and tokens behind it"):
        example_batches([example], tokenizer, 1)
