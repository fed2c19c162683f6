"""Questions from files, in the forms that the field's judges use."""

import json

import pytest

from lit_prune.errors import DataError
from lit_prune.evaluation import Prompt, read_prompts


def test_text_has_a_question_a_line(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("What is gravity?\n\n  Who was Ada?  \n")
    assert read_prompts(path) == [Prompt(1, ("What is gravity?",)), Prompt(2, ("Who was Ada?",))]


def test_json_lines_may_have_turns(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
        {"prompt": "Say."},
        {"question": "Why?", "id": "x"},
    ]
    path.write_text("\n".join(json.dumps(each) for each in lines))
    expected = [Prompt(81, ("Write.", "Rewrite."), "writing"), Prompt(2, ("Say.",)), Prompt("x", ("Why?",))]
    assert read_prompts(path) == expected


def test_a_mark_and_half_a_character_are_no_hindrance(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "Say \\ud83d."}\r\n')
    assert read_prompts(path) == [Prompt(1, ("Say \ufffd.",))]


def test_a_list_is_alpaca_evals(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"instruction": "Name three.", "dataset": "helpful", "output": "a"}, "Plain text"]))
    assert read_prompts(path) == [Prompt(1, ("Name three.",)), Prompt(2, ("Plain text",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n\n", "holds no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n{"promt": "y"}', "prompt 2: expected"),
        ("a.jsonl", '{"turns": []}', "prompt 1: expected"),
        ("a.jsonl", '{"turns": "text"}', "prompt 1: expected"),
        ("a.jsonl", '{"prompt": "  "}', "prompt 1: expected"),
        ("a.jsonl", '{"prompt": ', "is not JSON"),
        ("a.jsonl", "[" * 9000, "prompt 1: this JSON is nested too deeply"),
        ("a.json", '{"prompt": "x"}', "must be a list"),
        ("a.jsonl", '{"id": 2, "prompt": "x"}\n{"prompt": "y"}', "two prompts with the id 2"),
        ("a.jsonl", '{"id": [2], "prompt": "x"}', "an id is a number or text"),
    ],
)
def test_damaged_files_are_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the prompts .*none\.txt"):
        read_prompts(tmp_path / "none.txt")
