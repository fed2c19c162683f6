"""Accuracy on tasks, by lm-evaluation-harness."""

from __future__ import annotations

import importlib
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.errors import LitPruneError
from lit_prune.surgery import evaluating

METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "pass_at_k", "contains")
"""The first of these that a task has is its score."""
PRESETS = {
    "paper": ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"),
    "hard": ("mmlu", "gsm8k", "humaneval", "agieval_en", "lambada_openai", "squad_completion"),
}
"""Tasks of the method's paper, and those that its reviewers asked for."""
RUNS_CODE = ("humaneval",)
"""Their score is had by running what a model wrote."""
BOOTSTRAPS = 100
"""Of errors that have no closed form; those of accuracies have one."""
LOCAL = ("{}_local", "{}")
"""What a preset's task may be called in a folder of the user's own."""


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on a task: the value of a measure, from 0 to 1, its standard error, and every item's value.

    Items are in the order of the harness; there are none where their mean is not the task's value.
    """

    metric: str
    value: float
    error: float
    items: tuple[float, ...] = ()

    def error_of_rise(self, before: TaskScore) -> float | None:
        """Standard error of how far the value is above another's on the same items; None where they are not known.

        That of the mean of paired differences, which McNemar's test is of when items are right or wrong.

        Example:
            >>> one, two = TaskScore("acc", 0.5, 0.25, (1, 1, 0, 0)), TaskScore("acc", 0.75, 0.22, (1, 1, 1, 0))
            >>> one.error_of_rise(two)
            0.25
        """
        if len(self.items) < 2 or len(self.items) != len(before.items):
            return None
        differences = [after - other for after, other in zip(self.items, before.items, strict=True)]
        return statistics.stdev(differences) / math.sqrt(len(differences))


def task_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    batch_size: int | str = 8,
    num_fewshot: int | None = None,
    apply_chat_template: bool | str = False,
    system_instruction: str | None = None,
    run_code: bool = False,
) -> dict[str, TaskScore]:
    """Evaluate a model, perhaps pruned, as it is in memory; its mode is restored afterwards.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        tasks: Names of tasks that the harness knows, or of files under `include_path`.
        include_path: Folder with further task files.
        limit: Items of every task; all when None.
        batch_size: Requests at a time; "auto" is the most that fits, by the harness's own trial.
        num_fewshot: Examples with answers before every item; None takes what the task says.
        apply_chat_template: Whether items are asked as a user would in a dialogue, by the tokenizer's chat template, or
            the name of one of its templates.
        system_instruction: What stands before every item, in a dialogue as the system's turn.
        run_code: Whether tasks may run what the model wrote.

    Raises:
        LitPruneError: The harness is not installed, does not know a task, or has no accuracy for it.
    """
    require_tasks(tasks, include_path)
    if not tasks:
        return {}
    if apply_chat_template and not tokenizer.chat_template:
        raise LitPruneError("apply_chat_template wants a chat template, and this tokenizer has none; leave it out")
    harness = importlib.import_module("lm_eval")
    language_model = importlib.import_module("lm_eval.models.huggingface").HFLM
    settings = {"DISABLE_MULTIPROC": "1"}  # the harness would fork a process with a model in it
    if run_code:
        settings["HF_ALLOW_CODE_EVAL"] = "1"  # the second lock on such tasks
    # The harness seeds every generator of the process.
    with evaluating(model), _environment(settings), isolate_rng():
        found = harness.simple_evaluate(
            model=language_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction,
            task_manager=_task_manager(include_path),
            log_samples=True,
            bootstrap_iters=BOOTSTRAPS,
            confirm_run_unsafe_code=run_code,
        )
    return {name: _score(name, found) for name in tasks}


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables that are not set get these values meanwhile."""
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def chosen_tasks(
    names: Sequence[str], include_path: str | None = None, *, run_code: bool = False
) -> tuple[list[str], list[str]]:
    """Spell presets out as names of tasks, and leave out what cannot be run.

    Args:
        names: Names of tasks, or of `PRESETS`.
        include_path: Folder with further task files; of a preset's tasks those that are there are taken, as NAME_local
            or NAME, and no others.
        run_code: Whether tasks that run what a model wrote are wanted.

    Returns:
        The names, and a sentence for every task of a preset that is left out.

    Raises:
        LitPruneError: The harness is not installed, does not know one of them, or one runs code and that is not wanted.
    """
    found: list[str] = []
    left_out: list[str] = []
    # Tasks of the folder, without the harness's own.
    is_own = include_path and any(name in PRESETS for name in names)
    own = set(_task_manager(include_path, defaults=False).all_tasks) if is_own else None
    for name in names:
        for task in PRESETS.get(name, ()):
            forms = [form.format(task.removesuffix("_openai")) for form in LOCAL]
            known = [task] if own is None else [form for form in forms if form in own]
            if task in RUNS_CODE and not run_code:
                left_out.append(f"{task} is left out: it runs what models write, which --run_code true allows")
            elif known:
                found.append(known[0])
            else:
                left_out.append(f"{task} is left out: there is no file for it under {include_path}")
        if name not in PRESETS:
            if name in RUNS_CODE and not run_code:
                raise LitPruneError(f"{name} runs what models write; allow it with --run_code true, or leave it out")
            found.append(name)
    found = list(dict.fromkeys(found))
    require_tasks(found, include_path)
    return found, left_out


def require_tasks(tasks: Sequence[str], include_path: str | None = None) -> None:
    """Raise a LitPruneError, before any work is done, where the harness, one of the tasks or the folder is missing."""
    if include_path is not None and not os.path.isdir(include_path):
        raise LitPruneError(f"there is no folder {include_path} of task files")
    if not tasks:
        return
    known = set(_task_manager(include_path).all_tasks)
    if unknown := [name for name in tasks if name not in known]:
        where = f", nor is there a file for it under {include_path}" if include_path else ""
        raise LitPruneError(f"lm-evaluation-harness has no task {unknown[0]!r}{where}")


def _task_manager(include_path: str | None, *, defaults: bool = True) -> Any:
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise LitPruneError(f"tasks need lm-evaluation-harness: pip install 'lit-prune[eval]' ({error})") from error
    return _indexed(tasks.TaskManager, include_path, defaults)


@cache
def _indexed(manager: Any, include_path: str | None, defaults: bool) -> Any:
    """Reading all task files takes seconds."""
    return manager(include_path=include_path, include_defaults=defaults)


def _score(task: str, found: Mapping[str, Any]) -> TaskScore:
    results = found["results"][task]
    for metric in METRICS:
        for name, value in results.items():
            if name.partition(",")[0] == metric:
                error = results.get(name.replace(metric, f"{metric}_stderr", 1))
                num_items = found.get("n-samples", {}).get(task, {}).get("effective", 0)
                if not isinstance(error, int | float):
                    # The harness knows none for this task's mean; that of a share of items is this at most.
                    error = math.sqrt(value * (1 - value) / (num_items - 1)) if num_items > 1 else math.inf
                items = _items(found.get("samples", {}).get(task, ()), *name.split(",")[:2])
                agree = items and math.isclose(statistics.fmean(items), value, abs_tol=1e-9)
                return TaskScore(metric, float(value), float(error), items if agree else ())
    raise LitPruneError(f"task {task} gives none of {', '.join(METRICS)}; it gives {', '.join(results)}")


def _items(samples: Iterable[Mapping[str, Any]], metric: str, form: str = "none") -> tuple[float, ...]:
    """Values of a measure by item, of the answers in one form (the harness's filter); none where one is no number."""
    own = sorted((each for each in samples if each.get("filter", "none") == form), key=lambda each: each["doc_id"])
    values = [float(each[metric]) for each in own if isinstance(each.get(metric), int | float)]
    return tuple(values) if len(values) == len(own) else ()
