"""A LightningDataModule over windows of text.

The random state of the process is never drawn from, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset
from transformers import PreTrainedTokenizerBase

from lit_prune.anatomy import context_length
from lit_prune.data.batches import batch_of, require_positive
from lit_prune.data.chat import require_answers
from lit_prune.data.texts import BUILTIN, read_parts
from lit_prune.data.tokens import room
from lit_prune.data.windows import draw_windows, token_windows
from lit_prune.errors import DataError
from lit_prune.files import Document
from lit_prune.loading.sources import load_tokenizer
from lit_prune.measure import require_apart

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


class TextDataModule(L.LightningDataModule):
    """Windows of text for training, validation (which also scores what is pruned) and test, none in two of them.

    Batches are dicts with `input_ids` and `labels`, LongTensors [batch, window].

    Args:
        source: A source as for `read_texts`: `builtin`, a file, a folder of files, or a data set on the hub.
        name: Configuration of a hub data set; its default when None.
        tokenizer: A tokenizer, or the name of a model; None takes that of the `LitCausalLM` that is trained.
        window: Number of tokens in a window.
        batch_size: Number of windows in a batch.
        field: Key of the text in rows of files and hub data sets.
        train_windows: Number of windows for training, drawn at random; all when None.
        val_windows: Number of windows for validation; all when None.
        test_windows: Number of windows for the test; all when None.
        num_workers: Number of processes that load; 0 is best, as the windows are in memory.
        seed: Decides the share-out, the draw of windows and the order in training.
        answers_only: Whether only what the assistant says in dialogues (rows of `messages`, of `prompt` and
            `completion`, or of `instruction` and `output`) has labels.
        by_document: Whether documents stay whole, several in a window where they fit, and do not see each other: by
            `position_ids` that begin again, which is refused for models that do not go by them.

    Raises:
        DataError: A number is too small or too large; in `setup`, the text cannot be read or is too short, or the
            window exceeds the model's context.
    """

    def __init__(
        self,
        source: str | Path = BUILTIN,
        *,
        name: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        window: int = 512,
        batch_size: int = 8,
        field: str = "text",
        train_windows: int | None = None,
        val_windows: int | None = 32,
        test_windows: int | None = 32,
        num_workers: int = 0,
        seed: int = 0,
        answers_only: bool = False,
        by_document: bool = False,
    ) -> None:
        super().__init__()
        counts = {"train_windows": train_windows, "val_windows": val_windows, "test_windows": test_windows}
        require_positive(window=window, batch_size=batch_size, **counts)
        if num_workers < 0 or not 0 <= seed < 2**32:
            raise DataError(f"num_workers is 0 or more, and a seed from 0 to 2**32 - 1; found {num_workers} and {seed}")
        source = str(source)  # checkpoints hold the arguments, and load only plain types
        # Not to the logger: there, a name used by the module too, such as `seed`, would be refused.
        self.save_hyperparameters(ignore=() if isinstance(tokenizer, str | None) else ("tokenizer",), logger=False)
        self.source, self.name, self.field, self.seed = source, name, field, seed
        self.tokenizer, self.window, self.batch_size, self.num_workers = tokenizer, window, batch_size, num_workers
        self.answers_only, self.by_document = answers_only, by_document
        self.limits = {name.removesuffix("_windows"): limit for name, limit in counts.items()}
        self._windows: dict[str, Tensor] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, share out and tokenise what the stage needs; None prepares every part."""
        wanted = [part for part in STAGES.get(str(stage), self.limits) if part not in self._windows]
        if not wanted:
            return
        trained = None if self.trainer is None else self.trainer.lightning_module
        self._require_context(trained)
        tokenizer = self._resolved_tokenizer(trained)
        enough = {part: None if most is None else room(most, self.window) for part, most in self.limits.items()}
        texts = read_parts(self.source, name=self.name, field=self.field, seed=self.seed, enough=enough)
        for part in wanted:
            self._windows[part] = self._draw(part, texts[part], tokenizer)
            network = getattr(trained, "model", None)
            if isinstance(network, nn.Module):
                require_apart(network, [batch_of(self._windows[part])])

    def windows(self, part: str) -> Tensor:
        """The windows of `train`, `val` or `test`, LongTensor [num_windows, window], once `setup` has run."""
        return self._windows[part]

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches that are shuffled anew every epoch, by seed and epoch alone.

        Processes share the windows out and take `batch_size` of them a step; a step of them all takes the windows that
        one process would.
        """
        shares = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        windows = TensorDataset(self._windows["train"])
        # Lightning, left to share them out, would shuffle once more.
        sampler: Sampler[int] = DistributedSampler(
            windows, **(shares or {"num_replicas": 1, "rank": 0}), seed=self.seed
        )
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches for validation, in a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches for the test, in a fixed order, of text that neither trains nor scores."""
        return self._loader("test")

    def _loader(self, part: str, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return window_loader(
            self._windows[part], self.batch_size, seed=self.seed, sampler=sampler, num_workers=self.num_workers
        )

    def _draw(self, part: str, texts: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> Tensor:
        limit, manner = self.limits[part], {"answers_only": self.answers_only, "by_document": self.by_document}
        try:
            if limit is None:
                windows = token_windows(texts, tokenizer, self.window, **manner)
            else:
                draw: dict[str, Any] = {"most": limit, "seed": self.seed, "in_order": True, **manner}
                windows = draw_windows(texts, tokenizer, window=self.window, **draw)
            if self.answers_only:
                require_answers(windows)
            return windows
        except DataError as error:
            raise DataError(f"the {part} part of {self.source}: {error}") from error

    def _resolved_tokenizer(self, trained: L.LightningModule | None) -> PreTrainedTokenizerBase:
        tokenizer = getattr(trained, "tokenizer", None) if self.tokenizer is None else self.tokenizer
        if tokenizer is None:
            raise DataError("no tokenizer: give TextDataModule a model's name or a tokenizer, or train a LitCausalLM")
        return load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer

    def _require_context(self, trained: L.LightningModule | None) -> None:
        context = context_length(getattr(getattr(trained, "model", None), "config", None))
        if context is not None and self.window > context:
            raise DataError(
                f"a window of {self.window} tokens exceeds the model's context of {context}; make it shorter"
            )


def window_loader(
    windows: Tensor,
    batch_size: int,
    *,
    seed: int,
    sampler: Sampler[int] | None = None,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """Batches with labels of windows [num_windows, window], in their order unless they are sampled."""
    return DataLoader(
        TensorDataset(windows),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=_collate,
        # Without its own, a loader draws a seed from the random state of the process at every epoch.
        generator=torch.Generator().manual_seed(seed),
    )


def _collate(rows: Sequence[tuple[Tensor]]) -> dict[str, Tensor]:
    return batch_of(torch.stack([row for (row,) in rows]))
