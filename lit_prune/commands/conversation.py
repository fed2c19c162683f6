"""The same questions to several models: what they say, what it shows, and the files that judges read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.evaluation import (
    Prompt,
    Reference,
    Signs,
    Turn,
    alpaca_eval_outputs,
    answers,
    mt_bench_answers,
    question,
    references,
    signs,
)
from lit_prune.files import file_name, write_text
from lit_prune.report import answers_markdown


@dataclass
class Conversation:
    """The same questions to every model, and their answers' texts and signs of damage by the model's name."""

    prompts: Sequence[Prompt]
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int
    said: dict[str, list[list[str]]] = field(default_factory=dict)
    signs: dict[str, Signs] = field(default_factory=dict)
    _dense: list[list[Turn]] | None = None
    _expected: list[Reference] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        """How the answers were made, for the table's readers."""
        how = f"sampled at {self.temperature}" if self.temperature else "greedy"
        answered = f"Answers to {len(self.prompts)} prompts, {how}, at most {self.max_new_tokens} tokens."
        compared = " Next token and KL divergence at the positions of the reference's answers, KL at their first 16."
        return answered + (compared if self._dense else "")

    def require_askable(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Put the first question into a model's chat template, before long work."""
        if self.prompts:
            question(tokenizer, self.prompts[0].turns[:1], [])

    def ask(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_reference: bool) -> None:
        """Let a model answer; the reference comes first."""
        if not self.prompts:
            return
        found = answers(
            model,
            tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch_size=self.batch_size,
            seed=self.seed,
        )
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
        return {"signs": {name: asdict(found) for name, found in self.signs.items()}, "answers": asked}

    def write(self, folder: Path) -> None:
        """Write the answers, for people and for judges."""
        write_text(folder / "answers.md", answers_markdown(self.prompts, self.said))
        for name, said in self.said.items():
            judged = mt_bench_answers(name, self.prompts, said, time=time.time())
            write_text(folder / "model_answer" / f"{file_name(name)}.jsonl", judged)
            outputs = alpaca_eval_outputs(name, self.prompts, said)
            write_text(folder / "alpaca_eval" / f"{file_name(name)}.json", outputs)
