"""The formats by name, and one function for all of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export import mlx, remote_code, vllm, zeroed
from lit_prune.export.card import model_card
from lit_prune.export.folder import FolderFormat, require_empty, save, write_loadable
from lit_prune.export.gguf import require_no_file, save_gguf, usage_of_gguf
from lit_prune.export.hub import push, require_login
from lit_prune.export.recipe import save_recipe
from lit_prune.plan import PrunePlan
from lit_prune.surgery import compacted


def export_model(
    model: PreTrainedModel,
    output: str | Path,
    *,
    format: str = "hf",
    tokenizer: PreTrainedTokenizerBase | None = None,
    plan: PrunePlan | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    **options: Any,
) -> Path:
    """Write a model, pruned or dense, for another runtime. What is written is read back and compared first.

    Args:
        model: A model of transformers without adapters.
        output: A folder that does not exist or is empty; for gguf a file that does not exist.
        format: Name of the format: hf, hf-remote-code, hf-stock, hf-zeroed, vllm, mlx or gguf, which the
            reference page of runtimes describes; or recipe, the plan and what differs from the dense model.
        tokenizer: The tokenizer, which is written with the model; gguf wants one.
        plan: The plan, which is written with the model.
        push_to_hub: A repository on the Hub, `user/name`, to which what was written is uploaded with its card; it is
            made if it is not there.
        private: Whether a repository that is made so is private.
        options: Options of the format: `verify` of all of them, `weights` and `tokenizer_from` of gguf, `dense` of
            recipe.

    Returns:
        What was written.

    Raises:
        ModelError: The format is unknown or has no such option, cannot hold this model, or what was read back differs;
            or nobody is logged in to the Hub, or the Hub refuses.
    """
    if format not in FORMATS:
        raise ModelError(f"{format!r} is no export format; known are {', '.join(FORMATS)}")
    write = FORMATS[format]
    if unknown := sorted(set(options) - set(signature(write).parameters)):
        raise ModelError(f"the format {format} has no option {', '.join(unknown)}")
    if push_to_hub is not None:
        require_login(push_to_hub)
    written = write(model, output, tokenizer=tokenizer, plan=plan, **options)
    if push_to_hub is not None:
        card = model_card(model, plan, usage_of_gguf(push_to_hub, written)) if written.is_file() else None
        push(written, push_to_hub, private=private, card=card)
    return written


def require_free(output: str | Path, format: str) -> Path:
    """Refuse with a ModelError, before long work, a place at which a format cannot be written; else return it."""
    return require_no_file(output) if format == "gguf" else require_empty(output)


def require_stock(model: PreTrainedModel) -> None:
    """Refuse with a ModelError a model without single sublayers, which transformers' own class would build again."""
    with compacted(model):
        anatomy = find_sublayers(model)
        if not anatomy.is_stock:
            left = [str(sublayer) for sublayer in anatomy.removed if sublayer in anatomy.paths]
            raise ModelError(
                f"a stock class would build {', '.join(left[:4])}{', …' if len(left) > 4 else ''} again: only a model "
                "that lost whole blocks (--granularity block) is stock; export as hf-remote-code, or hf-zeroed"
            )


FORMATS: dict[str, Callable[..., Path]] = {
    "hf": save,
    "hf-remote-code": FolderFormat(remote_code.write, remote_code.require_importable, tombstones=True),
    "hf-stock": FolderFormat(write_loadable, require_stock, tombstones=True),
    "hf-zeroed": FolderFormat(zeroed.write),
    "vllm": FolderFormat(vllm.write, vllm.require_serving),
    "mlx": FolderFormat(mlx.write, mlx.require_mlx),
    "gguf": save_gguf,
    "recipe": save_recipe,
}
