"""How a run's model is used, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.export import usage
from lit_prune.loading.models import skeleton
from lit_prune.plan import PLAN_FILE, SETTINGS, PrunePlan
from lit_prune.report.page.sources import ModelRun

GENERATE = """
prompt = tokenizer("The capital of France is", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**prompt, max_new_tokens=32)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))"""


@dataclass(frozen=True)
class HowTo:
    """How a run's model is used.

    Attributes:
        code: Python that loads it and writes some text; empty where that is not known.
        note: What to know of it, in Markdown, or why it is not known.
        commands: Of lit-prune, by what they do.
    """

    code: str
    note: str
    commands: Mapping[str, str]


def how_to(run: ModelRun, *, trust_remote_code: bool = False) -> HowTo | None:
    """Find out from the config in a run's folder; None where no model was saved.

    Args:
        run: Whose model.
        trust_remote_code: Run code that comes with the model.
    """
    if run.model is None:
        return None
    commands = dict(_commands(run.model_name, run.plan))
    try:
        how = usage(skeleton(run.model, trust_remote_code=trust_remote_code), run.model_name)
    except LitPruneError as error:
        return HowTo("", f"How to load it is not known: {error}", commands)
    return HowTo("\n".join([how.code, *_generation(run.model, run.model_name)]), how.note, commands)


def _generation(folder: Path, name: str) -> Iterator[str]:
    if not any(folder.glob("tokenizer*")):
        return
    place = dumps(name, ensure_ascii=False)
    yield f"\nfrom transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained({place})"
    yield GENERATE


def _commands(folder: str, plan: PrunePlan | None) -> Iterator[tuple[str, str]]:
    model, base = shlex.quote(folder), shlex.quote(plan.model.name) if plan and plan.model.name else ""
    if base:
        yield "measure it", f"lit-prune evaluate {model} --against {base} --output evaluation"
    yield (
        "load it where lit-prune is not installed",
        f"lit-prune export {model} --format hf-remote-code --output anywhere",
    )
    if plan is not None and base and not plan.healing:
        yield "get back what was lost", f"lit-prune heal {model} --output healed"
        steps = shlex.quote(str(Path(folder) / PLAN_FILE))
        yield "remove the same from another copy", f"lit-prune apply {steps} {base} --output again"


def made(plan: PrunePlan) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings of a plan, each with its names and values; those that are empty are left out."""
    data = plan.to_dict()
    return [(name, list(_flat(data[name]))) for name in ("model", *SETTINGS) if data[name]]


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, those of a mapping inside behind its own name.

    Example:
        >>> list(_flat({"lora": {"rank": 8}, "data": ["a", "b"], "dense": None}))
        [('lora.rank', '8'), ('data', 'a, b')]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, "", []):
            yield f"{above}{name}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
