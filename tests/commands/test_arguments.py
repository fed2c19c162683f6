"""A function's signature as a command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lit_prune.__main__ import main
from lit_prune.commands.arguments import call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--names", "a"], ["a"]),
        (["--names=a"], ["a"]),
        (["--names", "a,b/c.txt"], ["a", "b/c.txt"]),
        (["--names=[a, b]"], ["a", "b"]),
        (["--names", "[a, b]"], ["a", "b"]),
        (["--names", "a, {method: b}"], ["a", {"method": "b"}]),
        (["--names", "null"], None),
        (["--names+", "a", "--names+", "b"], ["a", "b"]),
        (["--text", "a,b"], None),
        (["--config", "CONFIG"], ["x", "y"]),
        (["--config", "CONFIG", "--names", "a"], ["a"]),
    ],
)
def test_a_list_needs_no_brackets(tmp_path, arguments, expected):
    config = tmp_path / "config.yaml"
    config.write_text("names: [x, y]\n")
    seen = []

    def verb(name: str, *, names: list[str | dict[str, Any]] | None = None, text: str = "") -> None:
        seen.append((name, names, text))

    call(verb, "verb", ["m", *(str(config) if each == "CONFIG" else each for each in arguments)])
    assert seen == [("m", expected, "a,b" if "--text" in arguments else "")]


def test_numbers_without_brackets_are_numbers():
    seen = []

    def verb(*, amounts: list[float] | None = None) -> None:
        seen.append(amounts)

    call(verb, "verb", ["--amounts", "0.1,0.2"])
    assert seen == [[0.1, 0.2]]


def test_names_in_a_list_are_as_they_are():
    seen = []

    def verb(*, files: list[str] | None = None) -> None:
        seen.append(files)

    call(verb, "verb", ["--files", r"m$\frac{1}$.txt, a: b.txt,1e9"])
    assert seen == [[r"m$\frac{1}$.txt", "a: b.txt", "1e9"]]


def test_what_is_wrong_in_a_list_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "x", "--output", str(tmp_path / "out"), "--amounts", "0.1,much"])
    assert ended.value.code == 2
    assert "Expected a <class 'float'>. Got value: much" in capsys.readouterr().err


def test_the_next_option_is_no_value_of_a_list(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "x", "--output", str(tmp_path / "out"), "--tasks", "--dtype", "bfloat16"])
    assert ended.value.code == 2
    assert "expected one argument" in capsys.readouterr().err


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        window: Tokens in a window.
        files: Where it is.
    """

    window: int = 8
    files: list[str] | None = None


TEXT = Text(window=16)


def test_the_fields_of_a_dataclass_are_options(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("window: 32\n")
    seen = []

    def verb(name: str, *, text: Text = TEXT) -> None:
        """Do something.

        Args:
            name: A name.
            text: What is read.
        """
        seen.append(text)

    call(verb, "verb", ["m"])
    call(verb, "verb", ["m", "--window", "4", "--files", "a,b"])
    call(verb, "verb", ["m", "--config", str(config), "--files=a"])
    assert seen == [TEXT, Text(4, ["a", "b"]), Text(32, ["a"])]
    with pytest.raises(SystemExit):
        call(verb, "verb", ["--help"])
    assert "Tokens in a window. (type: int, default: 16)" in capsys.readouterr().out


def test_the_fields_of_a_nested_dataclass_have_its_name_before_them():
    seen = []

    def verb(*, text: Text = TEXT) -> None:
        seen.append(text)

    call(verb, "verb", ["--text.window", "4"], nested=["text"])
    assert seen == [Text(4)]
