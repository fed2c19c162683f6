"""`lit-prune chat`: a conversation with a model, or the same one with two."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lit_prune.commands.arguments import call
from lit_prune.commands.options import Loading
from lit_prune.errors import LitPruneError
from lit_prune.files import clean, say

LOADING = Loading()
NEW, EXIT = "/new", "/exit"
PROMPT = "> "


def chat(
    model: str,
    *,
    against: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    loading: Loading = LOADING,
) -> None:
    """Talk to a model, pruned or dense: a prompt a line, from the terminal or piped, and answers as they come.

    /new begins anew, /exit and Ctrl-D end, Ctrl-C ends an answer. What was said before belongs to every prompt, as long
    as the model's context holds it.

    Args:
        model: A hub name, a folder (pruned too), a GGUF file, or package:NAME.
        against: Another model that answers first, such as the dense one.
        max_new_tokens: Length limit of an answer, in tokens.
        temperature: Temperature of sampling; 0 is greedy.
        seed: Decides what is sampled.
        loading: How the models are loaded.
    """
    import torch

    names = [*([] if against is None else [against]), model]
    tokenizers = [loading.tokenizer(name) for name in names]
    speakers = [
        Speaker(name, loading.model(name), tokenizer, max_new_tokens, temperature)
        for name, tokenizer in zip(names, tokenizers, strict=True)
    ]
    torch.manual_seed(seed)
    if sys.stdin.isatty():
        say(f"{NEW} begins anew, {EXIT} ends")
    for prompt in _prompts():
        for speaker in speakers:
            if prompt == NEW:
                speaker.turns.clear()
                speaker.said.clear()
                continue
            if against is not None:
                say(f"[{speaker.name}]")
            try:
                speaker.reply(prompt)
            except LitPruneError as error:
                say(str(error), file=sys.stderr)


run = partial(call, chat)


@dataclass
class Speaker:
    """A model in a conversation: what was said to it, and what it has said."""

    name: str
    model: Any
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    turns: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def reply(self, prompt: str) -> None:
        """Print the answer to a prompt as it comes.

        Raises:
            LitPruneError: The model's context cannot hold the prompt, which is forgotten.
        """
        from lit_prune.evaluation import spoken

        context = self._context(prompt)
        answer = spoken(
            self.model,
            self.tokenizer,
            context,
            _print,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        say("\n")
        self.turns.append(prompt)
        self.said.append(answer)

    def _context(self, prompt: str) -> list[int]:
        """Token ids of the prompt, with as much of what was said before as there is room for."""
        from lit_prune.anatomy import context_length
        from lit_prune.evaluation import question

        room = (context_length(self.model.config) or sys.maxsize) - self.max_new_tokens
        for first in range(len(self.turns) + 1):
            found = question(self.tokenizer, [*self.turns[first:], prompt], self.said[first:])
            if len(found) <= room:
                return found
        raise LitPruneError(
            f"the prompt has {len(found)} tokens, and {self.name} has room for {max(0, room)} beside an answer of "
            f"{self.max_new_tokens}"
        )


def _print(text: str) -> None:
    """Print a piece of a text that goes on, with the line ends at its own ends."""
    print("\n".join(map(clean, text.split("\n"))), end="", flush=True)


def _prompts() -> Iterator[str]:
    """What a user asks, until the end; prompts that are piped in are shown."""
    while True:
        try:
            line = input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if not sys.stdin.isatty():
            say(line)
        if line == EXIT:
            return
        if line.startswith("/") and line not in (NEW, EXIT) and " " not in line:
            say(f"{NEW} begins anew, {EXIT} ends; there is no {line}", file=sys.stderr)
        elif line:
            yield line
