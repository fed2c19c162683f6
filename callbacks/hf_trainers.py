"""What `HfPruneCallback` needs of a Trainer of transformers: to be met by it, its batches, its checkpoints."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from lit_prune.anatomy import RECORD_KEY, language_model
from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.files import read_json, require_kinds, write_json
from lit_prune.measure import input_ids_of
from lit_prune.plan import PLAN_FILE, PrunePlan
from lit_prune.training import structure_of

from .validation import ValidationBatch

STATE_FILE = "prune_state.json"
"""Beside the plan in a checkpoint: what a resumed training has to know besides."""
_MEETS = "_lit_prune_meets"


def meet_trainers(kind: Any) -> None:
    """Have `Trainer.train` enter `training(trainer)` of its callbacks of a kind: transformers tells them no trainer."""
    trainers: Any = importlib.import_module("transformers").Trainer
    own = trainers.train
    if hasattr(own, _MEETS):
        return

    @wraps(own)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = [callback for callback in self.callback_handler.callbacks if isinstance(callback, kind)]
        if len(found) > 1:
            raise LitPruneError(f"{len(found)} {kind.__name__}s would write the same files of a checkpoint; keep one")
        with ExitStack() as held:
            for callback in found:
                held.enter_context(callback.training(self))
            return own(self, *args, **kwargs)

    setattr(train, _MEETS, True)
    trainers.train = train


def require_supported(trainer: Any) -> None:
    """Refuse, before any work, ways to train under which removal is not known to be right."""
    ways = {
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "FSDP": trainer.is_fsdp_enabled or getattr(trainer, "is_fsdp_xla_enabled", False),
        # Older transformers do not shard, and have no such attribute.
        "a model that transformers has sharded": getattr(trainer, "is_distributed_loading_by_transformers", False),
        f"DataParallel on {trainer.args.n_gpu} GPUs": trainer.args.n_gpu > 1,
    }
    if found := [name for name, holds in ways.items() if holds]:
        raise LitPruneError(
            f"HfPruneCallback wants the whole model in every process (found: {', '.join(found)}); use one GPU "
            "(CUDA_VISIBLE_DEVICES=0), or DDP with a process for each (torchrun)"
        )


def require_latest_kept(args: Any, last_drop: int | None) -> None:
    """Refuse to let transformers compare models of different sizes; the last epoch that drops is None where unknown."""
    names = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy='best'": str(getattr(args.save_strategy, "value", args.save_strategy)) == "best",
    }
    if last_drop != 0 and (found := [name for name, holds in names.items() if holds]):
        raise LitPruneError(
            f"{' and '.join(found)} would keep the model with the least removed, whose loss is the best; leave it out, "
            "or drop everything before the first epoch (schedule=0.2 beside amount=0.2)"
        )


def renew_ddp(trainer: Any) -> None:
    """Build DDP anew after parameters are gone: its reducer would wait for their gradients for ever."""
    wrapped = trainer.model_wrapped
    if isinstance(wrapped, DistributedDataParallel):
        handler = trainer.accelerator.ddp_handler
        options: dict[str, Any] = {} if handler is None else handler.to_kwargs()
        options |= {"device_ids": wrapped.device_ids, "output_device": wrapped.output_device}
        # The loop that trains holds this object: it gets the inside of a new one.
        fresh = type(wrapped)(wrapped.module, **options)
        if handler is not None:
            handler.register_comm_hook(fresh)
        vars(wrapped).clear()
        vars(wrapped).update(vars(fresh))


def num_epochs(state: Any) -> int | None:
    """Epochs of a training, None where its data is a stream."""
    return state.num_train_epochs if 0 < state.num_train_epochs < sys.maxsize else None


def scored_batches(trainer: Any, given: list[Any] | None, limit: int | None) -> list[ValidationBatch]:
    """The batches to score on, on the CPU: those given, else of each of the trainer's evaluation sets `limit` at most.

    Every process has all of them. A DataError says that there are none, or that they hold no tokens.
    """
    if given is None and trainer.eval_dataset is None:
        raise DataError(
            "sublayers are scored on the Trainer's evaluation set, and it has none: give it an eval_dataset, or "
            "HfPruneCallback(batches=...) dicts with `input_ids`"
        )
    batches = list(_evaluation_batches(trainer, limit)) if given is None else given
    try:
        require_tokens(batches)
    except DataError as error:
        raise DataError(f"{error}; HfPruneCallback(batches=...) takes other ones to score on") from error
    return [ValidationBatch(batch, 0, 0) for batch in batches]


def require_tokens(batches: Sequence[Any]) -> None:
    """Refuse batches without `input_ids` with a DataError, and to be without batches."""
    if not batches:
        raise DataError("there are no batches")
    for batch in batches:
        input_ids_of(batch)


def _evaluation_batches(trainer: Any, limit: int | None) -> Iterator[Any]:
    names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, Mapping) else [None]
    for name in names:
        loader = trainer.get_eval_dataloader(name)
        if trainer.args.world_size > 1:
            loader = whole_loader(trainer, loader, trainer.args.eval_batch_size)
        # One of accelerate's that is not read to its end leaves marks in the state of gradient accumulation.
        yield from islice(getattr(loader, "base_dataloader", loader), limit)


def whole_loader(trainer: Any, loader: Any, batch_size: int) -> Any:
    """A plain loader over all examples that accelerate's loader shuffles, or shares among processes."""
    if trainer.args.world_size > 1 and isinstance(loader.dataset, IterableDataset):
        raise DataError("several processes share numbered examples, and the Trainer has a stream; use one process")
    return DataLoader(loader.dataset, batch_size, collate_fn=loader.collate_fn)


@contextmanager
def followed(trainer: Any, restore: Callable[[Path], object]) -> Iterator[None]:
    """Have `restore` called in a `with` block with a checkpoint's folder before weights are read from it."""
    own = trainer._load_from_checkpoint

    def first(folder: str, *args: Any, **kwargs: Any) -> Any:
        restore(Path(folder))
        return own(folder, *args, **kwargs)

    # An attribute of the object hides the method of its class.
    trainer._load_from_checkpoint = first
    try:
        yield
    finally:
        vars(trainer).pop("_load_from_checkpoint", None)


def write_checkpoint(folder: Path, model: Any, state: Mapping[str, Any]) -> None:
    """Write the state of a course and the structure of its model into a checkpoint's folder."""
    PrunePlan.from_dict(state["plan"]).save(folder / PLAN_FILE)
    rest = {name: value for name, value in state.items() if name != "plan"}
    write_json(folder / STATE_FILE, {**rest, "structure": structure_of(model)})


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote; None where nothing was pruned yet when the checkpoint was made.

    A ModelError says that it is not there or damaged, where the model has lost sublayers.
    """
    file, config = folder / STATE_FILE, folder / "config.json"
    if not file.exists():
        record = read_json(config.read_text(encoding="utf-8")).get(RECORD_KEY) if config.exists() else None
        if isinstance(record, Mapping) and record.get("removed"):
            raise ModelError(f"{folder} is of a pruned model and has no {STATE_FILE}; go on from an earlier checkpoint")
        return None
    try:
        state = read_json(file.read_text(encoding="utf-8"))
        require_kinds(STATE_FILE, state, {"num_earlier": int, "last_epoch": int, "structure": Mapping[str, Any]})
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} is damaged: {error}; go on from an earlier checkpoint") from error
    return {**state, "plan": PrunePlan.load(folder).to_dict()}


def model_of(trainer: Any) -> Any:
    """The Hugging Face model that a Trainer trains, without a peft wrapper around it."""
    return language_model(trainer.model)
