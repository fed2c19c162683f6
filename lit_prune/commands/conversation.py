"""The same questions to several models: what they say, what it shows, and the files that judges read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_prune.evaluation import Prompt, Reference, Signs, Turn, answers, question, references, signs
from lit_prune.files import file_name, write_text
from lit_prune.report import alpaca_eval_outputs, answers_markdown, mt_bench_answers


class Conversation:
    """The same questions to every model, and what their answers show.

    Args:
        prompts: The questions.
        max_new_tokens: See `evaluate`, as what follows.
        temperature: See there.
        batch_size: See there.
        seed: See there.

    Attributes:
        said: Texts of the answers, by the model's name.
        signs: Of damage, by the model's name.
    """

    def __init__(
        self, prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, batch_size: int, seed: int
    ) -> None:
        self.prompts = prompts
        self.options = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.said: dict[str, list[list[str]]] = {}
        self.signs: dict[str, Signs] = {}
        self._dense: list[list[Turn]] | None = None
        self._expected: list[Reference] = []

    @property
    def protocol(self) -> str:
        """How the answers were made, for the table's readers."""
        how = f"sampled at {self.options['temperature']}" if self.options["temperature"] else "greedy"
        answered = f"Answers to {len(self.prompts)} prompts, {how}, at most {self.options['max_new_tokens']} tokens."
        compared = (
            " Next token and KL divergence at the positions of the reference's answers, KL at their first 16."
            if self._dense
            else ""
        )
        return answered + compared

    def require_askable(self, tokenizer: Any) -> None:
        """Put the first question into a model's chat template, before long work.

        Raises:
            ModelError: The template cannot be used.
        """
        if self.prompts:
            question(tokenizer, self.prompts[0].turns[:1], [])

    def ask(self, name: str, model: Any, tokenizer: Any, *, is_reference: bool) -> None:
        """Let a model answer; the reference comes first."""
        if not self.prompts:
            return
        found = answers(model, tokenizer, self.prompts, **self.options)  # type: ignore[arg-type]
        self.said[name] = [[turn.text for turn in turns] for turns in found]
        self.signs[name] = signs(model, found, self._dense, self._expected)
        if is_reference:
            self._dense, self._expected = found, references(model, found)

    def to_dict(self) -> dict[str, Any]:
        """Signs and answers for the JSON file."""
        asked = [
            {
                "id": prompt.id,
                "category": prompt.category,
                "prompt": prompt.turns,
                "answers": {name: said[number] for name, said in self.said.items()},
            }
            for number, prompt in enumerate(self.prompts)
        ]
        return {"signs": {name: asdict(each) for name, each in self.signs.items()}, "answers": asked}

    def write(self, folder: Path) -> None:
        """Write the answers, for people and for judges."""
        write_text(folder / "answers.md", answers_markdown(self.prompts, self.said))
        for name, said in self.said.items():
            judged = mt_bench_answers(name, self.prompts, said, time=time.time())
            write_text(folder / "model_answer" / f"{file_name(name)}.jsonl", judged)
            outputs = alpaca_eval_outputs(name, self.prompts, said)
            write_text(folder / "alpaca_eval" / f"{file_name(name)}.json", outputs)
