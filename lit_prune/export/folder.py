"""The standard Hugging Face folder of a pruned model: written aside, read back, compared, then renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import context_length, is_adapted
from lit_prune.errors import ModelError
from lit_prune.export.card import CARD_FILE, Usage, model_card
from lit_prune.files import destination, folder_aside, obstacle
from lit_prune.loading.checksums import write_sums
from lit_prune.loading.devices import is_spread, values_of
from lit_prune.loading.models import load
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.surgery import compacted, evaluating, is_sharded, removed_sublayers, require_recorded, without_tombstones

# Both sides run the same kernels on the same weights: they differ by the order of sums at most.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
COARSE_TOLERANCE = 1e-2


def require_empty(directory: str | Path) -> Path:
    """Check that a folder can be written: it does not exist, or is empty. For asking before long work.

    Returns:
        The folder, for a link where that leads to.

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
        raise ModelError(f"cannot save the model as {directory}: {error}") from error
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
        directory: Where it goes; must not exist or be empty.
        tokenizer: Written beside it.
        plan: Written beside it as `prune_plan.json`, and told in the model card.
        verify: Read the folder back and compare weights and logits before it gets its name; wants the memory of a
            second copy on the model's device.

    Returns:
        The folder.

    Raises:
        ModelError: The folder is not empty, the model has adapters or muted sublayers, the plan is another model's, it
            cannot be written, or what was read back differs. Nothing is left behind then.
    """
    with finished_folder(model, directory, plan, tombstones=True) as aside:
        write_standard(model, aside, tokenizer, plan)
        if verify:
            attention: Any = model.config._attn_implementation
            # No device holds what is spread over several.
            device = None if is_spread(model) else model.device
            require_same(model, load(aside, dtype=model.dtype, device=device, attn_implementation=attention))
    return Path(directory).expanduser()


@contextmanager
def finished_folder(
    model: PreTrainedModel, directory: str | Path, plan: PrunePlan | None, *, tombstones: bool = False
) -> Iterator[Path]:
    """A folder to write a model into, aside; it gets its name when the `with` block ends well.

    Inside, blocks without sublayers are closed up where that leaves a stock model.

    Args:
        model: As for `save`.
        directory: As for `save`.
        plan: As for `save`.
        tombstones: Whether empty tensors are written for the removed ones, at which other loaders stop.

    Raises:
        ModelError: It is not empty, the model is not one to be saved, or writing failed.
    """
    path = require_empty(directory)
    require_finished(model, plan)
    try:
        written = nullcontext() if tombstones else without_tombstones(model)
        with folder_aside(path) as aside, compacted(model), written:
            yield aside
            write_sums(aside)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot save the model as {directory}: {error}") from error


def require_finished(model: PreTrainedModel, plan: PrunePlan | None) -> None:
    """Refuse a model that is sharded, has adapters or muted sublayers, or one that the plan is not of.

    Raises:
        ModelError: It is such a model.
    """
    if is_adapted(model):
        raise ModelError("the model still has adapters; merge them before saving: lit_prune.merge(model)")
    if is_sharded(model):
        raise ModelError(
            "the model is sharded over processes; save what lit_prune.sharding.whole_copy(model) gives on process 0"
        )
    require_recorded(model)
    gone = set(removed_sublayers(model))
    if plan is not None and not set(plan.removed) <= gone:
        missing = ", ".join(str(each) for each in plan.removed if each not in gone)
        raise ModelError(f"the plan is another model's: it removes {missing}, which this model still has")


def write_standard(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    plan: PrunePlan | None,
    how: Usage | None = None,
) -> None:
    """Write weights, config, tokenizer, plan and card.

    Args:
        model: As it is.
        folder: That is there.
        tokenizer: Left out where None.
        plan: Left out where None.
        how: The folder is loaded, if otherwise than `usage` says.
    """
    model.save_pretrained(folder)
    open_weights(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if plan is not None:
        plan.save(folder / PLAN_FILE)
    (folder / CARD_FILE).write_text(model_card(model, plan, how), encoding="utf-8")


def open_weights(folder: Path) -> None:
    """Let whoever may read the config read the weights: safetensors writes for the owner alone, whatever the umask."""
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode)


def require_same(model: PreTrainedModel, read: PreTrainedModel) -> None:
    """Compare tensors and logits of a model with what was read back.

    Raises:
        ModelError: They differ.
    """
    written, back = model.state_dict(), read.state_dict()
    shapes, found = ({name: each.shape for name, each in state.items()} for state in (written, back))
    if differing := sorted({name for name, _ in shapes.items() ^ found.items()}):
        raise ModelError(f"read back, the model has other tensors: {', '.join(differing[:3])} ({len(differing)})")
    for name, tensor in written.items():
        if not torch.equal(values_of(model, name, tensor).to(back[name]), back[name]):
            raise ModelError(f"read back, the tensor {name} has other values")
    if is_spread(model):
        return  # other devices round otherwise
    _lend_buffers(model, read)
    require_logits(model, read)


def require_logits(model: PreTrainedModel, read: PreTrainedModel) -> None:
    """Compare the logits of two models on the same device.

    Raises:
        ModelError: They differ by more than the rounding of the dtype.
    """
    expected, found = _logits(model), _logits(read)
    allowed = TOLERANCES.get(model.dtype, COARSE_TOLERANCE) * max(1.0, float(expected.abs().max()))
    difference = float((expected - found).abs().max())
    if not difference <= allowed:
        raise ModelError(
            f"read back, the model gives other logits: they differ by {difference:.3g}, {allowed:.3g} is allowed"
        )


def _lend_buffers(model: PreTrainedModel, read: PreTrainedModel) -> None:
    # What is not saved is computed anew, in float32: rotary tables, which bf16-true training had rounded.
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        setattr(read.get_submodule(parent), leaf, buffer)


def _logits(model: PreTrainedModel) -> Tensor:
    """Logits [2, seq, vocab] of fixed random tokens."""
    config = model.config.get_text_config(decoder=True)
    length = min(16, context_length(config) or 16)
    tokens = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        logits: Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits.float()
