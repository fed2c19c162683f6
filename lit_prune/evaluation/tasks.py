"""Accuracy on tasks, by lm-evaluation-harness."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import LitPruneError
from lit_prune.measure import evaluating

METRICS = ("acc_norm", "acc", "exact_match")
"""The first of these that a task has is its score."""


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on a task.

    Attributes:
        metric: One of `METRICS`.
        value: From 0 to 1.
        error: Standard error of `value`.
    """

    metric: str
    value: float
    error: float


def task_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, TaskScore]:
    """Evaluate a model as it is in memory; its mode is restored afterwards.

    Args:
        model: A causal language model, perhaps pruned.
        tokenizer: Its own.
        tasks: Names that the harness knows, or of files under `include_path`.
        include_path: Folder with further task files.
        limit: Items of each task; all when None.
        batch_size: Requests at a time.

    Raises:
        LitPruneError: The harness is not installed, does not know a task, or has no accuracy for it.
    """
    require_tasks(tasks, include_path)
    harness: Any = importlib.import_module("lm_eval")
    language_model: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    with evaluating(model):
        found = harness.simple_evaluate(
            model=language_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            task_manager=_task_manager(include_path),
            log_samples=False,
            bootstrap_iters=0,
        )["results"]
    return {name: _score(name, found[name]) for name in tasks}


def require_tasks(tasks: Sequence[str], include_path: str | None = None) -> None:
    """Refuse tasks that cannot be run, before any work is done.

    Raises:
        LitPruneError: The harness is not installed, or does not know one of them.
    """
    if not tasks:
        return
    known = set(_task_manager(include_path).all_tasks)
    if unknown := [name for name in tasks if name not in known]:
        where = f", nor is there a file for it under {include_path}" if include_path else ""
        raise LitPruneError(f"lm-evaluation-harness has no task {unknown[0]!r}{where}")


def _task_manager(include_path: str | None) -> Any:
    try:
        tasks: Any = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise LitPruneError(f"tasks need lm-evaluation-harness: pip install 'lit-prune[eval]' ({error})") from error
    return tasks.TaskManager(include_path=include_path)


def _score(task: str, found: Mapping[str, Any]) -> TaskScore:
    for metric in METRICS:
        for name, value in found.items():
            if name.partition(",")[0] == metric:
                error = found.get(name.replace(metric, f"{metric}_stderr", 1))
                return TaskScore(metric, float(value), float(error) if isinstance(error, int | float) else 0.0)
    raise LitPruneError(f"task {task} gives none of {', '.join(METRICS)}; it gives {', '.join(found)}")
