"""The standard Hugging Face folder of a pruned model: written aside, read back, compared, then renamed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import context_length, is_adapted
from lit_prune.errors import ModelError
from lit_prune.export.card import CARD_FILE, Usage, model_card, usage
from lit_prune.files import destination, folder_aside, obstacle
from lit_prune.loading.checksums import write_sums
from lit_prune.loading.devices import is_spread, values_of
from lit_prune.loading.models import load
from lit_prune.loading.sources import without_bars
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.surgery import compacted, evaluating, is_sharded, removed_sublayers, require_recorded, without_tombstones

# Both sides run the same kernels on the same weights: they differ by the order of sums at most.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
COARSE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class FolderFormat:
    """A format that is a folder; called, it writes one aside, which gets its name when all went well.

    Attributes:
        write: Writes a model into a folder, and reads it back where it is to be verified. Blocks without sublayers are
            closed up then where that leaves a stock model. It returns the model as it lies there, and how it is loaded.
        require: Refuses with a ModelError, before anything is written, a model that the format cannot hold.
        tombstones: Whether empty tensors are written for the removed ones, at which other loaders stop.
    """

    write: Callable[[PreTrainedModel, Path, bool], tuple[PreTrainedModel, Usage]]
    require: Callable[[PreTrainedModel], None] = lambda _: None
    tombstones: bool = False

    def __call__(
        self,
        model: PreTrainedModel,
        directory: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        plan: PrunePlan | None = None,
        verify: bool = True,
    ) -> Path:
        """Write a model as `save` does, which says what the arguments are and what is refused."""
        self.require(model)
        path = require_empty(directory)
        require_finished(model, plan)
        try:
            as_written = nullcontext() if self.tombstones else without_tombstones(model)
            with folder_aside(path) as aside, compacted(model), as_written, without_bars():
                written_model, how = self.write(model, aside, verify)
                for weights in aside.glob("*.safetensors"):
                    # safetensors writes for the owner alone, whatever the umask: who may read the config may read them.
                    weights.chmod((aside / "config.json").stat().st_mode)
                if tokenizer is not None:
                    tokenizer.save_pretrained(aside)
                if plan is not None:
                    plan.save(aside / PLAN_FILE)
                (aside / CARD_FILE).write_text(model_card(written_model, plan, how), encoding="utf-8")
                write_sums(aside)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"cannot save the model as {directory}: {error}") from error
        return Path(directory).expanduser()


def require_empty(directory: str | Path) -> Path:
    """Check that a folder can be written: it does not exist, or is empty. For asking before long work.

    Returns:
        The folder; of a link, where that leads to.

    Raises:
        ModelError: Something is there already, or would be in the way.
    """
    path = destination(directory)
    try:
        reason = obstacle(path)
        if reason is None and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ModelError(
                f"{directory} exists already and would be overwritten; choose another folder or empty this one"
            )
    except OSError as error:
        reason = str(error)
    if reason is not None:
        raise ModelError(f"cannot save the model as {directory}: {reason}")
    return path


def save(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan: PrunePlan | None = None,
    verify: bool = True,
) -> Path:
    """Write a model, pruned or dense, as a folder that `lit_prune.load` reads.

    Blocks that have lost both sublayers are left out where the rest is a stock model; in memory they stay.

    Args:
        model: A model of transformers without adapters, in its own dtype and in any mode.
        directory: Where the folder goes; it must not exist, or be empty.
        tokenizer: The tokenizer, which is written beside the model; none is when None.
        plan: The plan, which is written beside the model as `prune_plan.json`, and told in the model card.
        verify: Whether the folder is read back, and weights and logits are compared, before it gets its name. That
            wants the memory of a second copy on the model's device.

    Returns:
        The folder.

    Raises:
        ModelError: The folder is not empty, the model has adapters or muted sublayers, the plan is another model's, it
            cannot be written, or what was read back differs. Nothing is left behind then.
    """
    standard = FolderFormat(write_loadable, tombstones=True)
    return standard(model, directory, tokenizer=tokenizer, plan=plan, verify=verify)


def write_loadable(model: PreTrainedModel, folder: Path, verify: bool) -> tuple[PreTrainedModel, Usage]:
    """Write a model for `lit_prune.load`, and compare it with what that reads."""
    model.save_pretrained(folder)
    if verify:
        attention = cast(str, model.config._attn_implementation)
        # No device holds what is spread over several.
        device = None if is_spread(model) else model.device
        require_same(model, load(folder, dtype=model.dtype, device=device, attn_implementation=attention))
    return model, usage(model)


def require_finished(model: PreTrainedModel, plan: PrunePlan | None) -> None:
    """Refuse with a ModelError a model that is sharded, has adapters or muted sublayers, or is not the plan's."""
    if is_adapted(model):
        raise ModelError("the model still has adapters; merge them before saving: lit_prune.merge(model)")
    if is_sharded(model):
        raise ModelError(
            "the model is sharded over processes; save what lit_prune.sharding.whole_copy(model) gives on process 0"
        )
    require_recorded(model)
    gone = set(removed_sublayers(model))
    if plan is not None and not set(plan.removed) <= gone:
        missing = ", ".join(str(sublayer) for sublayer in plan.removed if sublayer not in gone)
        raise ModelError(f"the plan is another model's: it removes {missing}, which this model still has")


def require_same(model: PreTrainedModel, read: PreTrainedModel) -> None:
    """Compare tensors and logits of a model with what was read back; a ModelError says where they differ."""
    written, back = model.state_dict(), read.state_dict()
    shapes, found = ({name: tensor.shape for name, tensor in state.items()} for state in (written, back))
    if differing := sorted({name for name, _ in shapes.items() ^ found.items()}):
        raise ModelError(f"read back, the model has other tensors: {', '.join(differing[:3])} ({len(differing)})")
    for name, tensor in written.items():
        if not torch.equal(values_of(model, name, tensor).to(back[name]), back[name]):
            raise ModelError(f"read back, the tensor {name} has other values")
    if is_spread(model):
        return  # other devices round otherwise
    # What is not saved is computed anew, in float32: rotary tables, which bf16-true training had rounded.
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        setattr(read.get_submodule(parent), leaf, buffer)
    require_logits(model, read)


def require_logits(model: PreTrainedModel, read: PreTrainedModel) -> None:
    """Compare the logits of two models on one device; a ModelError says if they differ by more than rounding."""
    expected, found = _logits(model), _logits(read)
    allowed = TOLERANCES.get(model.dtype, COARSE_TOLERANCE) * max(1.0, float(expected.abs().max()))
    difference = float((expected - found).abs().max())
    if not difference <= allowed:
        raise ModelError(
            f"read back, the model gives other logits: they differ by {difference:.3g}, {allowed:.3g} is allowed"
        )


def _logits(model: PreTrainedModel) -> Tensor:
    """Logits [2, seq, vocab] of fixed random tokens; of a model without head, hidden states [2, seq, hidden]."""
    config = model.config.get_text_config(decoder=True)
    length = min(16, context_length(config) or 16)
    tokens = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        return cast(Tensor, model(input_ids=tokens.to(model.device), use_cache=False)[0]).float()
