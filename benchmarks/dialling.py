"""`python -m benchmarks.dialling HEALED --data held.jsonl`: every size between a pruned model and its dense one.

Rules for the weights that were changed are compared: see `lit_prune.pruning.dialled`. `python -m benchmarks.dialling
texts` writes learned.jsonl and held.jsonl, documents of `mixed` to make the model with and to measure it on.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks import run
from lit_prune.commands.arguments import require_writable
from lit_prune.commands.options import Loading, Mixture, Sample
from lit_prune.data import MIXED, calibration_batches, read_texts, share_out
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import perplexity
from lit_prune.files import markdown_table, say, write_text
from lit_prune.loading.models import load
from lit_prune.plan import PrunePlan
from lit_prune.pruning.dialled import Gone, Rule, Strength, dial, share_gone

SAMPLE, LOADING = Sample(window=256, num_windows=24, batch_size=4), Loading()


def all_changes(_: Gone) -> float:
    """Every change stays."""
    return 1.0


def none_behind_a_whole_front(gone: Gone) -> float:
    """Weights with nothing gone in front of them any more are the dense model's."""
    return float(_still(gone.in_front) > 0 or _still(gone.everywhere) == len(gone.everywhere))


def none_behind_a_restored(gone: Gone) -> float:
    """Weights behind a sublayer that is back, up to the next that went, are the dense model's."""
    last_is_back = gone.in_front[-1][1] if gone.in_front else _still(gone.everywhere) < len(gone.everywhere)
    return float(not last_is_back)


def share_gone_in_front(gone: Gone) -> float:
    """The share of what went in front that is still gone; of all that went where nothing did."""
    return share_gone(Gone((), gone.in_front or gone.everywhere))


def _still(facts: tuple[tuple[int, bool], ...]) -> int:
    return sum(not is_back for _, is_back in facts)


def fully(_: float) -> float:
    """What is back counts fully."""
    return 1.0


RULES: dict[str, tuple[Rule, Strength]] = {
    "all stay": (all_changes, fully),
    "dense behind a whole front": (none_behind_a_whole_front, fully),
    "dense behind a restored one": (none_behind_a_restored, fully),
    "share still gone": (share_gone, fully),
    "share still gone in front": (share_gone_in_front, fully),
    "share of the number": (lambda gone: _still(gone.everywhere) / len(gone.everywhere), fully),
    "its square": (lambda gone: (_still(gone.everywhere) / len(gone.everywhere)) ** 2, fully),
    "square of the share": (lambda gone: share_gone(gone) ** 2, fully),
    "share back, its square gone": (lambda gone: 1 - (1 - share_gone(gone)) ** 2, lambda share: share),
    "share back": (share_gone, lambda share: share),
    "root of the share back": (share_gone, math.sqrt),
}
"""How much of its change a weight keeps, and how much what is back counts, by name."""


def dialling(
    model: str,
    *,
    sample: Sample = SAMPLE,
    dense: str | None = None,
    rules: list[str] | None = None,
    steps: list[int] | None = None,
    refit: str | None = None,
    before: str | None = None,
    output: str | None = None,
    loading: Loading = LOADING,
) -> None:
    """Measure perplexity at every size between a pruned model and its dense one, by every rule.

    Args:
        model: A folder that lit-prune wrote, refitted or healed.
        sample: The text to measure on.
        dense: The dense model; by default the one that the plan names.
        rules: Rules by their names; all by default.
        steps: Numbers of removals that are left; all by default, from the pruned model to the dense one.
        refit: Text to refit on at every size, 96 windows of it; nothing is refitted without.
        before: With it, the folder that was healed.
        output: File for the table as Markdown.
        loading: How models are loaded.
    """
    if unknown := sorted(set(rules or ()) - set(RULES)):
        raise LitPruneError(f"{', '.join(unknown)} is no rule; known are {', '.join(RULES)}")
    if output is not None:
        require_writable(output)
    plan, pruned = PrunePlan.load(model), loading.model(model)
    whole = load(dense or plan.model.name, dtype=pruned.dtype, device=loading.place)
    tokenizer = loading.tokenizer(dense or plan.model.name)
    batches = calibration_batches(sample.windows(tokenizer), sample.batch_size)
    text = Mixture(data=[refit], num_windows=96).batches(tokenizer, whole.config, lambda: whole) if refit else None
    base = None if before is None else loading.model(before)
    heads = ("removals left", "parameters gone", *(rules or RULES))
    table = []
    numbers = range(len(plan.steps), -1, -1) if steps is None else steps
    for row in _rows(plan, pruned, whole, rules or list(RULES), numbers, batches, text, base):
        say(" | ".join(row))
        table.append(row)
    written = markdown_table(heads, table)
    say(written)
    if output is not None:
        write_text(output, f"{written}\n")


def _rows(
    plan: PrunePlan,
    pruned: PreTrainedModel,
    whole: PreTrainedModel,
    rules: Sequence[str],
    numbers: Sequence[int],
    batches: list[Any],
    text: list[Any] | None,
    base: PreTrainedModel | None,
) -> Iterator[list[str]]:
    reference = perplexity(whole, batches)
    for number in numbers:
        row, gone = [], 0.0
        for rule in rules:
            between = copy.deepcopy(whole)
            kept_by, strength = RULES[rule]
            how: dict[str, Any] = {"rule": kept_by, "strength": strength, "batches": text, "before": base}
            kept = dial(pruned, between, plan, num_steps=number, **how)
            gone = kept.num_removed_parameters / plan.model.num_parameters
            found = perplexity(between, batches)
            error = found.error_of_rise(reference) or 0.0
            row.append(f"{found.ppl:.2f} ±{found.ppl * math.expm1(error):.2f}")
        yield [str(number), f"{gone:.1%}", *row]


def texts(folder: str = ".") -> None:
    """Write documents to make a model with and others to measure it on, four parts and one of `mixed`."""
    parts = share_out(read_texts(MIXED), seed=0)
    for name, documents in {"learned": parts["train"], "held": [*parts["val"], *parts["test"]]}.items():
        write_text(Path(folder) / f"{name}.jsonl", "".join(f"{json.dumps({'text': each})}\n" for each in documents))


if __name__ == "__main__":
    sys.exit(run(texts, sys.argv[2:]) if sys.argv[1:2] == ["texts"] else run(dialling))
