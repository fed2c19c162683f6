"""How a run's model is used, and how it was made: pieces of the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from json import dumps
from pathlib import Path
from typing import Any

from lit_prune.errors import LitPruneError
from lit_prune.export import usage
from lit_prune.loading.models import skeleton
from lit_prune.plan import PLAN_FILE, SETTINGS, PrunePlan
from lit_prune.report.pieces import Piece, titled

GENERATE = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})

prompt = tokenizer("The capital of France is", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**prompt, max_new_tokens=32)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))"""


def usage_pieces(
    folder: Path, name: str, plan: PrunePlan | None, *, trust_remote_code: bool = False
) -> Iterator[Piece]:
    """How the model in a folder, `name` in the user's words, is loaded, and what commands of lit-prune do with it."""
    yield Piece("heading", "How to use it")
    try:
        how = usage(skeleton(folder, trust_remote_code=trust_remote_code), name)
    except LitPruneError as error:
        yield Piece("paragraph", f"How to load it is not known: {error}")
    else:
        generate = GENERATE.format(name=dumps(name, ensure_ascii=False))
        yield Piece("code", f"{how.code}\n{generate}" if any(folder.glob("tokenizer*")) else how.code)
        yield Piece("paragraph", how.note)
    yield Piece("commands", dict(_commands(name, plan)))


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


def made_pieces(plan: PrunePlan | None, files: Mapping[str, str]) -> Iterator[Piece]:
    """The settings of a plan, each with its names and values, and files of settings; what is empty is left out."""
    data = plan.to_dict() if plan else {}
    made = {name: list(_flat(data[name])) for name in ("model", *SETTINGS) if data.get(name)}
    pieces = [Piece("made", made)] if made or files else []
    yield from titled("How it was made", [*pieces, *(Piece("file", named) for named in files.items())])


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
