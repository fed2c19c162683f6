"""Batches of windows, what identifies them, and a LightningDataModule over them.

The random state of the process is never drawn from, so a resumed run sees the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset
from transformers import PreTrainedTokenizerBase

from lit_prune.anatomy import context_length
from lit_prune.data.texts import BUILTIN, read_parts, read_texts
from lit_prune.data.windows import draw_windows, leading_bos, token_windows
from lit_prune.errors import DataError
from lit_prune.loading.sources import load_tokenizer

__all__ = [
    "TextDataModule",
    "calibration_batches",
    "draw_windows",
    "fingerprint",
    "leading_bos",
    "read_texts",
    "token_windows",
]
STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


def drawn_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    wanted: int,
    seed: int,
    most: int | None = None,
    stride: int | None = None,
) -> Tensor:
    """Windows of a text, [windows, window], in the order that a seed decides.

    Args:
        source: As for `read_texts`.
        tokenizer: Of the model.
        window: Tokens in a window.
        wanted: So many are needed.
        seed: Decides which ones, and their order.
        most: So many are taken where the text has them; `wanted` when None.
        stride: As for `token_windows`.

    Raises:
        DataError: There are fewer than `wanted`.
    """
    most = wanted if most is None else most
    windows = draw_windows(read_texts(source), tokenizer, window=window, most=most, seed=seed, stride=stride)
    if len(windows) < wanted:
        raise DataError(f"{source} has {len(windows)} windows of {window} tokens; {wanted} are asked for")
    return windows


def calibration_batches(windows: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    """Batches in the form that models and scorers take.

    Args:
        windows: LongTensor [num_windows, window].
        batch_size: Windows in a batch; the last one may have fewer.

    Raises:
        DataError: `batch_size` is below 1.
    """
    require_positive(batch_size=batch_size)
    return [_batch(rows) for rows in torch.split(windows, batch_size)]


def fingerprint(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """What identifies a set of tokens, however it is cut into batches and wherever it came from.

    Args:
        batches: Each with `input_ids` [batch, seq], perhaps `labels` [batch, seq].

    Returns:
        `num_sequences`, `num_tokens` (padding included) and `sha256` over tokens and labels.

    Raises:
        DataError: A batch has no `input_ids`.
    """
    digest, num_sequences, num_tokens = hashlib.sha256(), 0, 0
    for batch in batches:
        if "input_ids" not in batch:
            raise DataError(f"a batch must have `input_ids` [batch, seq]; found {', '.join(batch) or 'nothing'}")
        ids, labels = batch["input_ids"], batch.get("labels")
        for index, row in enumerate(ids):
            digest.update(f"{len(row)}:".encode() + _bytes(row) + (b"" if labels is None else _bytes(labels[index])))
        num_sequences += ids.shape[0]
        num_tokens += ids.numel()
    return {"num_sequences": num_sequences, "num_tokens": num_tokens, "sha256": digest.hexdigest()}


class TextDataModule(L.LightningDataModule):
    """Windows of text for training, validation (which also scores what is pruned) and test, none in two of them.

    Batches are dicts with `input_ids` and `labels`, LongTensors [batch, window].

    Args:
        source: As for `read_texts`: `builtin`, a file, a folder of files, or a data set on the hub.
        name: Configuration of a hub data set.
        tokenizer: A tokenizer, or the name of a model; None takes that of the `LitCausalLM` that is trained.
        window: Tokens in a window.
        batch_size: Windows in a batch.
        field: Key of the text in rows of files and hub data sets.
        train_windows: So many windows, drawn at random, instead of all.
        val_windows: The same for validation; all when None.
        test_windows: The same for the test; all when None.
        num_workers: Processes that load; 0 is best, as the windows are in memory.
        seed: Decides the share-out, the draw of windows and the order in training.

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
        self.limits = {name.removesuffix("_windows"): limit for name, limit in counts.items()}
        self._windows: dict[str, Tensor] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, share out and tokenise what the stage needs; None prepares every part."""
        wanted = [part for part in STAGES.get(str(stage), self.limits) if part not in self._windows]
        if not wanted:
            return
        self._require_context()
        tokenizer = self._resolved_tokenizer()
        texts = read_parts(self.source, name=self.name, field=self.field, seed=self.seed)
        for part in wanted:
            self._windows[part] = self._draw(part, texts[part], tokenizer)

    def windows(self, part: str) -> Tensor:
        """The windows of `train`, `val` or `test`, LongTensor [num_windows, window], once `setup` has run."""
        return self._windows[part]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled anew every epoch, by seed and epoch alone; a step of several processes takes what it does in one.

        Processes share the windows out; each takes `batch_size` of them a step.
        """
        shares = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        windows = TensorDataset(self._windows["train"])
        # Lightning, left to share them out, would shuffle once more.
        sampler: Sampler[int] = DistributedSampler(
            windows, **(shares or {"num_replicas": 1, "rank": 0}), seed=self.seed
        )
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """In a fixed order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In a fixed order; text that neither trains nor scores."""
        return self._loader("test")

    def _loader(self, part: str, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(
            TensorDataset(self._windows[part]),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_collate,
            # Without its own, a loader draws a seed from the random state of the process at every epoch.
            generator=_generator(self.seed),
        )

    def _draw(self, part: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
        limit, options = self.limits[part], {"window": self.window, "seed": self.seed, "in_order": True}
        try:
            if limit is None:
                return token_windows(texts, tokenizer, self.window)
            return draw_windows(texts, tokenizer, most=limit, **options)  # type: ignore[arg-type]
        except DataError as error:
            raise DataError(f"the {part} part of {self.source}: {error}") from error

    def _resolved_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = getattr(self._module(), "tokenizer", None) if self.tokenizer is None else self.tokenizer
        if tokenizer is None:
            raise DataError("no tokenizer: give TextDataModule a model's name or a tokenizer, or train a LitCausalLM")
        return load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer

    def _require_context(self) -> None:
        config: Any = getattr(getattr(self._module(), "model", None), "config", None)
        context = context_length(config)
        if context is not None and self.window > context:
            raise DataError(
                f"a window of {self.window} tokens exceeds the model's context of {context}; make it shorter"
            )

    def _module(self) -> L.LightningModule | None:
        return None if self.trainer is None else self.trainer.lightning_module


def require_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1 by their names, with a DataError; None is no number."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise DataError(f"{name} is 1 or more; found {value}")


def _batch(rows: Tensor) -> dict[str, Tensor]:
    # Two tensors: whoever masks labels in place must not change the tokens.
    return {"input_ids": rows, "labels": rows.clone()}


def _collate(rows: Sequence[tuple[Tensor]]) -> dict[str, Tensor]:
    return _batch(torch.stack([row for (row,) in rows]))


def _bytes(row: Tensor) -> bytes:
    return row.detach().to("cpu", torch.int64).contiguous().numpy().tobytes()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
