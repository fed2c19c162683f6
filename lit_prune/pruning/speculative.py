"""The pruned model as the draft of the dense one, with one copy of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lit_prune.anatomy import find_sublayers, language_model
from lit_prune.errors import LitPruneError, ModelError, PlanError
from lit_prune.plan import PrunePlan
from lit_prune.pruning.applied import apply_plan
from lit_prune.surgery import sharing_copy


def speculative(model: nn.Module, plan: PrunePlan | str | Path, *, num_tokens: int | None = None) -> PreTrainedModel:
    """Make a draft for transformers' assisted decoding of a model without some of its sublayers.

    `model.generate(**inputs, assistant_model=draft)` then writes what `model.generate(**inputs)` does, or, where it
    samples, draws from the same distribution (Leviathan et al. 2023, arXiv 2211.17192): the draft proposes tokens, and
    one pass of the model over all of them decides which stay. The draft is a pruned model with modules, config and
    KV cache of its own, the latter without layers where attention is gone; its weights are those of the model, and need
    no memory. The model is not changed. Weights that are changed in place later are changed in both.

    Only removals are taken from the plan: what a refit, a healing or another compensation made of the weights that stay
    is in the pruned model's own folder, and cannot be shared. To draft with those, load that folder and pass it as
    `assistant_model` itself.

    Args:
        model: The unpruned causal language model that the plan fits, perhaps quantised or wrapped by peft.
        plan: The removals, or a file or folder that holds them; `front_of` makes smaller ones.
        num_tokens: Tokens that are drafted at a time, always. None leaves transformers' own rule, which the draft's
            `generation_config` holds: `num_assistant_tokens`, ended early where the draft is unsure.

    Returns:
        The draft, in eval mode.

    Raises:
        ModelError: The model keeps a state that cannot be wound back to the tokens that stayed (as Mamba does), or its
            weights are sharded over processes.
        PlanError: The plan was made for a model of another structure, or leaves no attention, and so no cache.
    """
    if num_tokens is not None and num_tokens < 1:
        raise LitPruneError(f"a draft has 1 token or more at a time; found num_tokens={num_tokens}")
    found = plan if isinstance(plan, PrunePlan) else PrunePlan.load(plan)
    _require_rewinding(language_model(model))
    draft = sharing_copy(model)
    draft.train(False)
    apply_plan(draft, found, uncompensated=True)
    if not any(sublayer.kind == "attention" for sublayer in find_sublayers(draft).ids):
        raise PlanError("the plan leaves no attention, and a draft without a cache cannot assist; keep some of it")
    if num_tokens is not None:
        set_draft_length(draft, num_tokens)
    return draft


def set_draft_length(draft: PreTrainedModel, num_tokens: int) -> None:
    """Have a model write so many tokens at a time, always, wherever it is the `assistant_model`."""
    own: Any = draft.generation_config
    own.num_assistant_tokens, own.num_assistant_tokens_schedule = num_tokens, "constant"
    own.assistant_confidence_threshold = 0.0


def _require_rewinding(model: Any) -> None:
    """Refuse what transformers' assisted decoding refuses, before any text is there."""
    if getattr(model, "generation_config", None) is None:
        raise ModelError(f"{type(model).__name__} writes no text, so that there is nothing to draft for it")
    if getattr(model, "_is_stateful", False):
        raise ModelError(
            f"{type(model).__name__} keeps a state that cannot be wound back to the tokens that stayed, so that "
            "nothing can draft for it; prune it and use it alone"
        )
