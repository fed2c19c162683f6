"""A LightningModule around a causal language model: loss, perplexity, optimizer, and checkpoints of pruned models."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SchedulerType

from lit_prune.errors import LitPruneError, ModelError
from lit_prune.healing import TokenMean, adamw, checkpoint_activations, merge
from lit_prune.loading.checksums import require_intact_checkpoint
from lit_prune.loading.fsdp import shard
from lit_prune.loading.models import load, load_tokenizer, weights_dtype
from lit_prune.measure import labels_of, mean_loss, model_inputs
from lit_prune.training.checkpoint import STRUCTURE_KEY, follow_checkpoints, restore_structure, structure_of


class LitCausalLM(TokenMean):
    """Trains and validates a decoder-only language model.

    Batches are dicts with `input_ids` [batch, seq], perhaps `labels` (-100 where nothing is predicted) and
    `attention_mask`. Logs `train_loss`, `val_loss`, `val_ppl`, `test_loss`, `test_ppl`; losses are mean token losses in
    nats, exact over batches of any size and over processes. The gradient of an optimizer step is that of the mean over
    all its tokens, of batches that are accumulated and of other processes too.

    Args:
        model: A hub name, a folder (dense or pruned), a GGUF file, `package:NAME` (the GGUF file inside an installed
            package), or a model that is loaded already (then `load_from_checkpoint` wants it again).
        learning_rate: The learning rate of AdamW.
        weight_decay: The weight decay of AdamW.
        lr_schedule: A name that `transformers.get_scheduler` knows, such as `constant`, `linear`, `cosine`; the
            schedule is stepped with every optimizer step.
        warmup_steps: The number of optimizer steps until the full learning rate, with a schedule that has a warm-up.
        dtype: The dtype of the weights: `float32`, `bfloat16`, `auto`, `fastest`, as for `lit_prune.load`.
        attn_implementation: One of `sdpa`, `eager` and `flash_attention_2`; None leaves the choice to transformers.
        layout: A description of blocks that are not understood by themselves, or a YAML or JSON file: see `describe`.
        gradient_checkpointing: Whether activations are computed again in the backward pass instead of kept.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        ModelError: The model cannot be found or loaded.
        LitPruneError: The schedule is unknown, or (when fitting) wants an end that the trainer does not have.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        lr_schedule: str = "constant",
        warmup_steps: int = 0,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        layout: str | dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if lr_schedule not in list(SchedulerType):
            known = ", ".join(schedule.value for schedule in SchedulerType)
            raise LitPruneError(f"unknown lr_schedule {lr_schedule!r}; transformers knows {known}")
        if not isinstance(model, str | nn.Module):
            raise ModelError(f"expected the name of a model, or a model; found {model!r}")
        dtype = str(weights_dtype(dtype)).removeprefix("torch.")  # a checkpoint goes on in it on any machine
        self.save_hyperparameters(ignore=() if isinstance(model, str) else ("model",))
        self.model_name = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))
        self._trust_remote_code = trust_remote_code
        if isinstance(model, str):
            model = load(
                model,
                dtype=dtype,
                attn_implementation=attn_implementation,
                layout=layout,
                trust_remote_code=trust_remote_code,
            )
        elif layout is not None:
            raise LitPruneError("a model that is loaded already is described by lit_prune.describe(model, layout)")
        # Lightning keeps the modes that it finds, and `from_pretrained` leaves evaluation mode.
        self.model = model.train()
        if gradient_checkpointing:
            checkpoint_activations(self.model)
        self._has_loaded_adapters = False
        self._following = ExitStack()
        # By default, batches whose loss is NaN are left out of the mean.
        self.val_loss = MeanMetric(nan_strategy=math.inf)
        self.test_loss = MeanMetric(nan_strategy=math.inf)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Make the module of a checkpoint, as Lightning does, and run no code for it; adapters of healing are merged.

        The arguments are those of Lightning's method, which would run the code in the file of a URL unless
        `weights_only` is True. Keywords stand instead of the checkpoint's hyperparameters, and `trust_remote_code`
        counts only when it is given here.

        Raises:
            ModelError: The file is damaged.
        """
        if isinstance(checkpoint_path, str | os.PathLike):
            require_intact_checkpoint(checkpoint_path)
        kwargs.setdefault("trust_remote_code", False)
        # The classes that a checkpoint's hyperparameters name are not imported; a subclass may take some.
        kwargs |= {"_instantiator": None} if cls is LitCausalLM else {}
        module = super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs
        )
        module._merge_loaded()
        return module

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that belongs to the model; None where the model was given and names no place."""
        if not self.model_name:
            return None
        return load_tokenizer(self.model_name, trust_remote_code=self._trust_remote_code)

    def setup(self, stage: str) -> None:
        """Refuse adapters whose config no checkpoint could keep, before anything is trained."""
        structure_of(self.model)

    def configure_model(self) -> None:
        """Shard the model where the strategy has a mesh of devices (`ModelParallelStrategy`), with FSDP2."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)
            self._following.callback(follow_checkpoints(self, self.trainer.strategy, self._restore))

    def teardown(self, stage: str) -> None:
        """Merge the adapters of a checkpoint that was looked at, so that a whole model is left."""
        self._following.close()
        if stage != "fit":
            self._merge_loaded()

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits [batch, seq, vocab]."""
        return cast(Tensor, self.model(**model_inputs(self.model, batch), use_cache=False).logits)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, which `torch.compile(module)` cannot trace."""
        super().log(*args, **kwargs)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean token loss of the batch, in nats."""
        loss, num_tokens = self._mean_loss(batch)
        self.saw(num_tokens, batch_idx)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Mean token loss of the batch, in nats; accumulated over all loaders together."""
        loss, num_tokens = self._mean_loss(batch)
        self.val_loss.update(loss, num_tokens)
        return loss

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Accumulate the loss, over all loaders together."""
        self.test_loss.update(*self._mean_loss(batch))

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss` and `val_ppl`."""
        self._log_perplexity("val", self.val_loss)

    def on_test_epoch_end(self) -> None:
        """Log `test_loss` and `test_ppl`."""
        self._log_perplexity("test", self.test_loss)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is trained, and the schedule, stepped per optimizer step."""
        own = self.hparams
        name = own["lr_schedule"]
        steps = None if name.startswith("constant") else self.trainer.estimated_stepping_batches
        if steps is not None and not math.isfinite(steps):
            raise LitPruneError(f"lr_schedule={name} wants an end: give the trainer max_epochs or max_steps")
        return adamw(
            self,
            name,
            learning_rate=own["learning_rate"],
            weight_decay=own["weight_decay"],
            warmup=own["warmup_steps"],
            steps=None if steps is None else int(steps),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what was removed and attached, so that the checkpoint loads into a fresh model."""
        checkpoint[STRUCTURE_KEY] = structure_of(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring the model to the checkpoint's structure, before its weights are loaded."""
        if self.device_mesh is None:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        optimizers = () if self._trainer is None else self.trainer.optimizers
        self._has_loaded_adapters |= restore_structure(self.model, checkpoint, optimizers)

    def _merge_loaded(self) -> None:
        if self._has_loaded_adapters:
            merge(self.model)
        self._has_loaded_adapters = False

    def _mean_loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return mean_loss(self(batch), labels_of(batch))

    def _log_perplexity(self, stage: str, metric: MeanMetric) -> None:
        loss = metric.compute()
        metric.reset()
        self.log(f"{stage}_loss", loss, sync_dist=True)
        self.log(f"{stage}_ppl", math.exp(min(float(loss), 700.0)), prog_bar=True, sync_dist=True)
