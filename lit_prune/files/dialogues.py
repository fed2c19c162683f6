"""Dialogues as people keep them for training: rows with messages, a prompt and its completion, or an instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_prune.errors import DataError
from lit_prune.files.schemas import whole_characters

ASSISTANT = "assistant"
"""The role whose messages are answers."""


@dataclass(frozen=True)
class Dialogue:
    """What was said, and by whom.

    Attributes:
        messages: The messages as chat templates take them, mappings with `role` and `content`.
        tools: The tools that a template is to describe; None where there are none.
        in_template: Whether a chat template writes it; else it is a prompt and its completion, two texts in a row.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] | None = None
    in_template: bool = True

    def __len__(self) -> int:
        """Characters of all messages."""
        return sum(len(str(message.get("content") or "")) for message in self.messages)


Document = str | Dialogue


def dialogue_of(row: Any, place: str) -> Dialogue | None:
    """Take a dialogue out of a row in one of TRL's forms, or in Alpaca's; None where the row has none.

    These are `messages`, a list of them, with or without `tools`; `prompt` with `completion`, two such lists, or two
    texts that no template is put around; and `instruction`, perhaps with an `input`, with its `output`.

    Raises:
        DataError: A message is none; the message names its place.
    """
    if not isinstance(row, Mapping):
        return None
    row = whole_characters(_without_nulls(row))
    prompt, completion = row.get("prompt"), row.get("completion")
    alpaca = row.get("instruction"), row.get("input", ""), row.get("output")
    if isinstance(prompt, str) and isinstance(completion, str):
        written = ({"role": "user", "content": prompt}, {"role": ASSISTANT, "content": completion})
        return Dialogue(written, in_template=False)
    if "messages" in row:
        found = row["messages"]
    elif isinstance(prompt, list) and isinstance(completion, list):
        found = [*prompt, *completion]
    elif all(isinstance(part, str) for part in alpaca):
        *asked, output = alpaca
        found = [{"role": "user", "content": "\n\n".join(filter(None, asked))}, {"role": ASSISTANT, "content": output}]
    else:
        return None
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        raise DataError(
            f"{place}: messages are a list of objects with `role` and `content`, such as "
            '{"role": "user", "content": "Hello!"}; found ' + str(found)[:80]
        )
    tools = row.get("tools")
    return Dialogue(tuple(found), tuple(tools) if isinstance(tools, list) and tools else None)


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    return isinstance(message.get("content", ""), str | list)


def _without_nulls(value: Any) -> Any:
    """Rows of columns have every key of every message, with null where it means nothing; templates look for the key."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
