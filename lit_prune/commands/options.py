"""Options that several verbs have, each described once; `arguments.call` makes an option of every field."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lit_prune.commands.arguments import default_device, text_labels
from lit_prune.commands.checks import SELF
from lit_prune.files import Document, say

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        dtype: Data type of the weights: float32, bfloat16, float16, auto for that of the files, fastest on the device.
        device: Device, such as cuda:0 or cpu; by default a GPU where there is one.
        trust_remote_code: Run code that comes with the model.
    """

    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False

    @property
    def place(self) -> str:
        """The device that was named, else a GPU where there is one."""
        return default_device(self.device)

    @property
    def on_the_cpu(self) -> Loading:
        """The same, on the CPU unless a device was named."""
        return replace(self, device=self.device or "cpu")

    def model(self, name: str, layout: str | None = None) -> PreTrainedModel:
        """Load a model, straight onto its device; `layout` is a file that describes blocks."""
        from lit_prune.loading.models import load

        code = self.trust_remote_code
        model = load(name, dtype=self.dtype, device=self.place, layout=layout, trust_remote_code=code)
        if self.place == "cpu":
            hint_at_speed(model.dtype)
        return model

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """Load a model's tokenizer."""
        from lit_prune.loading.models import load_tokenizer

        return load_tokenizer(name, trust_remote_code=self.trust_remote_code)


@functools.cache
def hint_at_speed(dtype: torch.dtype) -> None:
    """Say so, once, where this CPU would run models faster in another data type."""
    from lit_prune.loading.devices import faster_on_cpu

    if (found := faster_on_cpu(dtype)) is not None:
        name = str(found[0]).removeprefix("torch.")
        say(f"this CPU multiplies {found[1]:.1f} times as fast in {name}, by a short trial: --dtype {name}")


@dataclass(frozen=True)
class Mixture:
    """Windows of tokens that are drawn from several texts in equal shares, in a mixed order.

    Attributes:
        data: Texts: mixed (novels, essays, Python's help topics and source code, in every installation), builtin (the
            help topics alone), files, folders, hub data sets, of texts or of dialogues, or self for what the dense
            model writes, half of it dialogues where it has a chat template. By default mixed, and beside it the text
            that a search looks at.
        window: Tokens in a window.
        num_windows: Windows in all; a text that has too few for its share gives what it has.
        batch_size: Windows in a batch.
        seed: Decides which windows are drawn, and their order.
    """

    data: list[str] | None = None
    window: int = 256
    num_windows: int = 192
    batch_size: int = 4
    seed: int = 0

    def require_possible(self) -> None:
        """Refuse numbers below 1."""
        from lit_prune.data import require_positive

        require_positive(window=self.window, num_windows=self.num_windows, batch_size=self.batch_size)

    @property
    def texts(self) -> list[str]:
        """The texts, `mixed` alone where none are given."""
        from lit_prune.data import MIXED

        return self.data or [MIXED]

    @property
    def recorded(self) -> dict[str, Any]:
        """What a plan says of the texts."""
        return {"source": ", ".join(self.texts), "window": self.window}

    def beside(self, searched: Sequence[str]) -> Mixture:
        """The same, with the texts of a search among the texts where none are given."""
        from lit_prune.data import BUILTIN, MIXED

        own = [text for text in searched if text not in (BUILTIN, MIXED)]
        return self if self.data else replace(self, data=[*own, MIXED])

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, config: Any, dense: Callable[[], PreTrainedModel]
    ) -> list[dict[str, Tensor]]:
        """Batches of windows, a share of which the dense model writes where it is to; shorter where its context is."""
        from lit_prune.anatomy import context_length
        from lit_prune.data import calibration_batches

        window = min(self.window, context_length(config) or self.window)
        return calibration_batches(self._windows(tokenizer, window, dense), self.batch_size)

    def _windows(self, tokenizer: PreTrainedTokenizerBase, window: int, dense: Callable[[], PreTrainedModel]) -> Tensor:
        import torch

        from lit_prune.data import drawn_windows

        share = -(-self.num_windows // len(self.texts))
        drawn = []
        for text in self.texts:
            if text == SELF:
                drawn.append(self_written(dense(), tokenizer, share, window, self.seed))
            else:
                drawn.append(drawn_windows(text, tokenizer, window=window, wanted=1, most=share, seed=self.seed))
        if len(drawn) == 1:
            return drawn[0]
        rows = torch.cat(drawn)
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))][: self.num_windows]


def self_written(
    dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int, window: int, seed: int
) -> Tensor:
    """Let the dense model write windows of the text `self`, [number, window], and say so."""
    from lit_prune.healing import written_windows

    say(f"the dense model writes {number} windows of {window} tokens")
    return written_windows(dense, number, window, tokenizer=tokenizer, batch_size=64, seed=seed)


def manner_of(texts: Any) -> dict[str, bool]:
    """How options have texts cut, where it is not as by default."""
    return {name: True for name in ("answers_only", "by_document") if getattr(texts, name)}


@dataclass(frozen=True)
class Sample:
    """Windows of tokens that are drawn from a text, or from texts of several kinds in equal shares and in turn.

    Attributes:
        data: Texts: builtin (Python's help topics), mixed (these, novels, essays and source code), .txt, .jsonl, .json
            or .parquet files, folders, or hub data sets, of texts or of dialogues (messages; prompt and completion;
            instruction and output); of more than one, one for each kind, every kind has its share.
        window: Tokens in a window.
        num_windows: Windows, drawn from the texts.
        batch_size: Windows in a batch, whose states are held at a time.
        seed: Decides which windows are drawn.
        answers_only: Of dialogues only what the assistant says counts; all of a text does.
        by_document: Documents stay whole, several in a window where they fit, and do not see each other.
    """

    data: list[str] | str = "builtin"
    window: int = 256
    num_windows: int = 8
    batch_size: int = 1
    seed: int = 0
    answers_only: bool = False
    by_document: bool = False

    def require_possible(self, **numbers: int | None) -> None:
        """Refuse numbers below 1, of windows and of what else is named."""
        from lit_prune.data import require_positive

        require_positive(num_windows=self.num_windows, batch_size=self.batch_size, **numbers)

    @property
    def texts(self) -> list[str]:
        """The texts, one for each kind."""
        return [self.data] if isinstance(self.data, str) else list(self.data)

    @property
    def source(self) -> str:
        """The texts by their names, for a plan's readers."""
        return ", ".join(self.texts)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a plan says of the texts."""
        return {"source": self.source, "window": self.window, **self.manner}

    @property
    def manner(self) -> dict[str, bool]:
        """See `manner_of`."""
        return manner_of(self)

    def share(self, number: int) -> int:
        """How many of a number of windows a kind of text has, rounded up."""
        return -(-number // len(self.texts))

    def windows(self, tokenizer: PreTrainedTokenizerBase, *, wanted: int | None = None) -> Tensor:
        """Draw windows, [windows, window], `num_windows` by default; a DataError where a text has too few."""
        from lit_prune.data import drawn_windows, interleaved

        wanted = self.num_windows if wanted is None else wanted
        draw = partial(
            drawn_windows,
            window=self.window,
            wanted=self.share(wanted),
            seed=self.seed,
            answers_only=self.answers_only,
            by_document=self.by_document,
        )
        return interleaved([draw(text, tokenizer) for text in self.texts])[:wanted]

    def apart(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_judging: int,
        num_unseen: int,
        read: Callable[..., list[Document]] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw windows for a search, [windows, window], and by the names of the texts those that nothing goes by.

        The last `num_judging` of a search's windows are of other documents than those before them, and `num_unseen` of
        every text of others again; a document that lies on a border has windows on both sides. A text that has too few
        windows gives what it has, first to the search.
        """
        import torch

        from lit_prune.data import draw_windows, interleaved, read_texts, room

        kinds = len(self.texts)
        parts = (self.num_windows - num_judging, num_judging, kinds * num_unseen)
        drawn: list[list[Tensor]] = []
        for kind, text in enumerate(self.texts):
            numbers = [number // kinds + (kind < number % kinds) for number in parts]
            most = sum(numbers)
            texts = (read or read_texts)(text, enough=room(most, self.window), seed=self.seed)
            if sum(numbers[1:]):
                random.Random(self.seed).shuffle(texts)
            rows = draw_windows(
                texts,
                tokenizer,
                window=self.window,
                most=most,
                seed=self.seed,
                in_order=most > numbers[0],
                answers_only=self.answers_only,
                by_document=self.by_document,
            )
            drawn.append(self._split(rows, numbers))
        searching, judging, unseen = zip(*drawn, strict=True)
        of_search = [interleaved(rows) for rows in (searching, judging) if sum(map(len, rows))]
        named = zip(text_labels(self.texts), unseen, strict=True)
        return self.checked(torch.cat(of_search)), {name: rows for name, rows in named if len(rows)}

    def checked(self, windows: Tensor) -> Tensor:
        """Windows of all texts, [windows, window]; a DataError where answers alone are to count and there are none."""
        from lit_prune.data import require_answers

        if self.answers_only:
            require_answers(windows)
        return windows

    def _split(self, rows: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Windows in the order of the text for searching, judging and neither, those of a search mixed."""
        import torch

        num_search = min(sum(numbers[:2]), len(rows))
        num_judging = round(num_search * numbers[1] / max(1, sum(numbers[:2])))
        first, second, rest = torch.split(rows, [num_search - num_judging, num_judging, len(rows) - num_search])
        draw = torch.Generator().manual_seed(self.seed)
        if numbers[1] or numbers[2]:
            first, second = (part[torch.randperm(len(part), generator=draw)] for part in (first, second))
        return [first, second, rest]
