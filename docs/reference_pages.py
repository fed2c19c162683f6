"""Pages of the reference that are made from the code while the site is built: a hook of mkdocs.

Files of their names in the repository, to which links lead there, say so. What the pages say stands in signatures,
docstrings and `--help`, so that it is said once.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import docstring_parser
import yaml

from lit_prune.files import Markdown, markdown_table

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/lit-prune/lit-prune/blob/main"
WIDE = "100000"
"""Columns of a terminal in which argparse breaks no line."""
TRAINER = "https://lightning.ai/docs/pytorch/stable/common/trainer.html#trainer-flags"
NAMED = (
    *("lit_prune.plan.Recipe", "lit_prune.plan.PruneStep", "lit_prune.plan.ModelFacts", "lit_prune.plan.SublayerId"),
    *("lit_prune.plan.Named", "lit_prune.pruning.dialled.Gone", "lit_prune.pruning.dialled.Rule"),
    *("lit_prune.plan.HealingReport", "lit_prune.healing.Teacher", "lit_prune.healing.OtherTeacher"),
    *("lit_prune.healing.Solutions", "lit_prune.evaluation.TaskScore", "lit_prune.evaluation.Speed"),
    *("lit_prune.evaluation.Ideal", "lit_prune.evaluation.TokenLoss", "lit_prune.evaluation.Analysis"),
    *("lit_prune.evaluation.footprint.Footprint", "lit_prune.measure.Losses", "lit_prune.measure.Figure"),
    "lit_prune.searches.Round",
    *("lit_prune.searches.PerEpoch", "lit_prune.loading.devices.DeviceMap"),
)
"""Types that signatures of public functions name, and that are not public by themselves."""
JSON = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "null",
    "Mapping": "object",
    "Candidate": "string",
    "ModelFacts": "object, [below](#model)",
    "tuple[PruneStep, ...]": "array of objects, [below](#each-of-steps)",
}
"""What types of Python are in JSON."""


def on_files(files: Any, config: Any) -> Any:
    """Put the pages in the place of the files of their names."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        address = f"reference/{name}.md"
        files.remove(files.get_file_from_path(address))
        files.append(File.generated(config, address, content=page()))
    return files


def command_line() -> str:
    """Every verb with its options, as `--help` tells them."""
    from lit_prune.__main__ import VERBS
    from lit_prune.commands.bench import KINDS

    rows = [[Markdown(f"[`{verb}`](#{verb})"), text] for verb, text in VERBS.items()]
    parts = [
        "# Command line",
        "Options of every verb, as `lit-prune VERB --help` tells them. Most verbs take `--config FILE`, a YAML file "
        "with any of their options. A list is written with commas, `--tasks piqa,arc_easy`, or in brackets.",
        _table(["verb", "what it does"], rows),
    ]
    for verb, text in VERBS.items():
        parts.append(f"## {verb}")
        if verb in ("validate", "test"):
            parts.append(f"`lit-prune {verb}`: {text}. It takes the options of [`fit`](#fit).")
        elif verb == "bench":
            parts.append(f"`lit-prune bench KIND`: {text}. KIND is one of {', '.join(f'`{kind}`' for kind in KINDS)}.")
            for kind in KINDS:
                parts += [f"### bench {kind}", *_options(f"bench {kind}")]
        else:
            parts += _options(verb)
    return "\n\n".join(parts) + "\n"


def _options(command: str) -> Iterator[str]:
    """A command's help as Markdown: what it does, and a list of definitions for each group of options."""
    described, listed = _help(command)
    yield f"`lit-prune {command}`: {described.removesuffix('.')}."
    group: list[str] = []
    for line in listed:
        if found := re.match(r"^(\S.*):$", line):
            yield from _group(group, described)
            group = [found[1]]
        elif found := re.match(r"^  (\S.*?)(?:\s{2,}(.*))?$", line):
            group += [f"`{found[1]}`", *([_definition(found[2])] if found[2] else [])]
        elif line.strip():
            group.append(_definition(line))
    yield from _group(group, described)


def _group(lines: list[str], described: str) -> Iterator[str]:
    """A heading and its definitions; what every command has is left out, and what Lightning tells of its Trainer."""
    title, *rest = lines or [""]
    if rest and rest[0].startswith("`--trainer "):
        yield f"**Trainer**\n\n`--trainer.NAME VALUE`\n:   Any argument of [Lightning's Trainer]({TRAINER})."
    elif rest and title != "options":
        titles = {"positional arguments": "Arguments", described.removesuffix("."): "Options"}
        pairs = "\n".join(line if line.startswith(":") else f"\n{line}" for line in rest)
        yield f"**{titles.get(_prose(title), _prose(title))}**\n{pairs}"


def _definition(text: str) -> str:
    """What is said of an option; where values are told one by one, behind dashes, as a list."""
    told, *values = re.split(r" - (?=\S+: )", text)
    if len(values) < 2:
        return f":   {_prose(text)}"
    last, kind = re.fullmatch(r"(.*?)( \((?:required, )?type: .*\))?", values[-1]).groups("")
    return "\n".join([f":   {_prose(told + kind)}\n", *(f"    - {_prose(value)}" for value in (*values[:-1], last))])


def _help(command: str) -> tuple[str, list[str]]:
    """What a command does, and the lines behind that of its `--help`."""
    from lit_prune.__main__ import main

    arguments = [*command.split(), "--help"]
    # LightningCLI warns where it is given other arguments than the program.
    with (
        patch.dict(os.environ, COLUMNS=WIDE),
        patch.object(sys, "argv", ["lit-prune", *arguments]),
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(io.StringIO()) as shown,
    ):
        main(arguments)
    usage, described, *rest = shown.getvalue().split("\n\n")
    assert usage.startswith("usage: lit-prune"), f"{command} has no help"
    # With variables of the environment, as LightningCLI has, options begin with a word of their own.
    lines = [line.replace("  ARG:   ", "  ", 1) for line in "\n\n".join(rest).splitlines()]
    return _prose(described), [line for line in lines if not line.startswith("  ENV:   ")]


def _prose(text: str) -> str:
    """Words of a terminal in Markdown, where braces, stars and brackets mean nothing outside of code.

    Without lists of all classes; with Lightning's markup of Sphinx as Markdown.
    """
    text = re.sub(r",? known subclasses: [^)]*", "", " ".join(text.split()))
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text.replace("``", "`"))
    words = [each if each[:1] == "`" else _escaped(each) for each in re.split(r"(`[^`<]+`(?!_))", text)]
    return "".join(words)


def _escaped(text: str) -> str:
    parts = []
    pieces = re.split(r"`([^`<]+) <([^>]+)>`_", text)
    for words, named, address in zip(*[iter([*pieces, None, None])] * 3, strict=True):
        link = f"[{named}]({address})" if named else ""
        parts.append(re.sub(r"([\\*_<>|\[\]{}])", r"\\\1", words) + link)
    return "".join(parts)


def python_api() -> str:
    """Everything public, for mkdocstrings to fill in."""
    import lit_prune.callbacks

    import lit_prune

    topics = re.findall(r"^- (\w+): ((?:.|\n  )*)", lit_prune.__doc__ or "", re.MULTILINE)
    groups = {
        **{topic: [_own(lit_prune, name) for name in re.findall(r"`(\w+)`", names)] for topic, names in topics},
        "lit_prune.callbacks": [f"callbacks.{name}" for name in lit_prune.callbacks.__all__],
        "Scorers, searches and compensations of your own": [
            *("lit_prune.scorers.Scorer", "lit_prune.searches.Search", "lit_prune.healing.Compensation"),
            *("lit_prune.plan.Scores", "lit_prune.plan.Candidate", "lit_prune.measure.WhatIf"),
        ],
        "Types that others return or take": NAMED,
    }
    parts = [
        "# Python",
        (
            "What is public, and stable: a name or an argument leaves one minor version after a `DeprecationWarning` "
            "said so. All else may change with any version."
        ),
    ]
    for title, names in groups.items():
        parts += [f"## {title}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def _own(package: Any, name: str) -> str:
    """The path by which mkdocstrings finds an object: a module of the same name would stand before it."""
    path = f"{getattr(package, name).__module__}.{name}"
    return path if path.endswith(f".{name}.{name}") else f"{package.__name__}.{name}"


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Give what is public the anchors of its public names."""
    if page.file.src_uri != "reference/python.md":
        return html
    for link in _every_link(page.toc):
        link.id = _public(link.id)
    return re.sub(r'(?<= id=")[^"]+|(?<= href="#)[^"]+', lambda found: _public(found[0]), html)


def _every_link(links: Iterable[Any]) -> Iterator[Any]:
    for link in links:
        yield link
        yield from _every_link(link.children)


def _public(anchor: str) -> str:
    return re.sub(
        r"^callbacks(?=\.)", "lit_prune.callbacks", re.sub(r"^lit_prune\.\w+\.(\w+)(?=\.\1$)", "lit_prune", anchor)
    )


def yaml_schema() -> str:
    """Arguments of `fit` by the class that takes them, and a whole file."""
    from lit_prune.callbacks import BeforeAfterCallback, SublayerAnalysisCallback, SublayerPruneCallback

    from lit_prune.data import TextDataModule
    from lit_prune.plan import Distillation, LoraHealing
    from lit_prune.training import LitCausalLM

    sections = {
        "model": LitCausalLM,
        "data": TextDataModule,
        "trainer.callbacks: SublayerPruneCallback": SublayerPruneCallback,
        "healing of SublayerPruneCallback: LoraHealing": LoraHealing,
        "distill of SublayerPruneCallback: Distillation": Distillation,
        "trainer.callbacks: BeforeAfterCallback": BeforeAfterCallback,
        "trainer.callbacks: SublayerAnalysisCallback": SublayerAnalysisCallback,
    }
    parts = [
        "# YAML",
        "`lit-prune fit`, `validate` and `test` are a LightningCLI. A file has the keys `model`, `data`, `trainer` and "
        "`seed_everything`; what is given on the command line goes before it (`--trainer.max_epochs 5`). `trainer` "
        "takes every argument of Lightning's Trainer. Callbacks of lit-prune are known by their short names: "
        "`--trainer.callbacks+=SublayerPruneCallback --trainer.callbacks.amount=0.2`. `lit-prune fit --config FILE "
        "--print_config` prints a file with every argument. `--config quickstart` finds a file that is in every "
        "installation, and so does `--config models/llama-3.1-8b`, one of those for well-known models "
        "([configs/models](https://github.com/lit-prune/lit-prune/tree/main/configs/models): Llama, Qwen, Mistral, "
        "Gemma, OPT), each with the hours and gigabytes of its search. This is the first of them:",
        f"```yaml\n{(ROOT / 'configs/quickstart.yaml').read_text(encoding='utf-8').strip()}\n```",
    ]
    for title, kind in sections.items():
        parts += [f"## {title}", _first_sentence(kind), _arguments(kind, kind)]
    return "\n\n".join(parts) + "\n"


def _arguments(callable_: Callable[..., Any], documented: Any) -> str:
    """Arguments as definitions: the name and the default, and what the docstring says."""
    texts = _documented(documented)
    lines = []
    for name, parameter in inspect.signature(callable_).parameters.items():
        if name not in texts:
            continue
        default = "required" if parameter.default is parameter.empty else f"default `{_written(parameter.default)}`"
        lines.append(f"\n`{name}`: {default}\n:   {_in_yaml(texts[name])}")
    return "\n".join(lines)


def _in_yaml(text: str) -> str:
    """What a docstring says, with the constants of Python as YAML writes them."""
    for python, name in {"None": "null", "True": "true", "False": "false"}.items():
        text = re.sub(rf"(?<![\w`]){python}(?![\w`])", f"`{name}`", text)
    return text


def _documented(documented: Any) -> dict[str, str]:
    parsed = docstring_parser.parse(inspect.getdoc(documented) or "")
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}


def _written(value: Any) -> str:
    """A default as YAML writes it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, tuple | frozenset):
        value = list(value)
    if isinstance(value, list):
        value = [round(each, 4) if isinstance(each, float) else each for each in value]
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return markdown_table(heads, rows, heads)


def _first_sentence(documented: Any) -> str:
    return " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())


def _description(documented: Any) -> str:
    """What a docstring says ahead of its sections."""
    return docstring_parser.parse(inspect.getdoc(documented) or "").description or ""


def _registered(title: str, opening: str, registry: Any) -> str:
    parts = [f"# {title}", opening]
    for name, factory in registry:
        parts += [f"## {name}", _description(factory), _arguments(factory, factory), _where(factory)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _where(factory: Any) -> str:
    return f"[Source]({SOURCE}/{factory.__module__.replace('.', '/')}.py)"


def scorers() -> str:
    """Every scorer with its options."""
    from lit_prune.scorers import SCORERS

    opening = (
        "A scorer says how important each candidate is; the lowest goes first. Name one with `--scorer NAME`, or with "
        "options: `--scorer '{name: taylor, protect_first: 2}'`, the same in YAML and in Python (`scorer={\"name\": "
        '"taylor", "protect_first": 2}`). The path of a class or function puts [your own](../guides/extend.md) in. '
        "[The guide](../guides/methods.md) has a table of what each one costs."
    )
    return _registered("Scorers", opening, SCORERS.items())


def searches() -> str:
    """Every search with its options."""
    from lit_prune.searches import SEARCHES

    opening = (
        "A search decides which candidates are scored, and so which goes next. Name one with `--search NAME`, or with "
        "options: `--search '{name: refine, start: lazy}'`. [The guide](../guides/methods.md) says which to take, and "
        "[your own](../guides/extend.md) is a function."
    )
    return _registered("Searches", opening, SEARCHES.items())


def methods() -> str:
    """Every method of the field, from its file."""
    from lit_prune.plan import method_names, read_method

    parts = [
        "# Methods",
        "`--method NAME` prunes as a paper does. Each is [a small file]"
        "(https://github.com/lit-prune/lit-prune/tree/main/configs/methods) that says what it is made of and what it "
        "does otherwise than the original; `--scorer`, `--search`, `--granularity` and `--protect` change any part.",
    ]
    for name in method_names():
        method = read_method(name)
        made_of = ", ".join(f"{part} `{_written(_plain(value))}`" for part, value in _parts(method).items())
        differs = "" if method.differs == "Nothing." else f"**Differs from the original.** {method.differs}"
        parts += [f"## {name}", f"{method.title} ({method.source}): {made_of}.", differs]
    return "\n\n".join(filter(None, parts)) + "\n"


def _parts(method: Any) -> dict[str, Any]:
    names = ("scorer", "search", "granularity", "protect", "compensate")
    found = {name: getattr(method, name) for name in names}
    return {name: value for name, value in found.items() if value}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def plan_schema() -> str:
    """Fields of `prune_plan.json`, from the records that it is read into."""
    from lit_prune.plan import ModelFacts, PrunePlan, PruneStep
    from lit_prune.plan.prune_plan import SCHEMA_VERSION

    parts = [
        "# prune_plan.json",
        f"A plan says what was removed, in which order, and why. It is JSON, schema {SCHEMA_VERSION}, with a checksum "
        "of itself. It applies to any copy of the model that it was made for (`lit-prune apply PLAN MODEL --output "
        "DIR`) and is refused by other models, as is a file of a newer schema. In Python: `PrunePlan.load(path)`.",
    ]
    for title, kind in {"The plan": PrunePlan, "model": ModelFacts, "Each of steps": PruneStep}.items():
        texts = _documented(kind)
        version = [("schema_version", "int", "The version of this schema.")] if kind is PrunePlan else []
        found = [*version, *((each.name, str(each.type), texts[each.name]) for each in fields(kind))]
        rows = [[Markdown(f"`{name}`"), Markdown(_in_json(of)), Markdown(_in_yaml(text))] for name, of, text in found]
        parts += [f"## {title}", _table(["field", "type", "what it is"], rows)]
    return "\n\n".join(parts) + "\n"


def _in_json(annotation: str) -> str:
    return " or ".join(JSON.get(each, JSON.get(each.partition("[")[0], each)) for each in annotation.split(" | "))


PAGES: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "python": python_api,
    "yaml": yaml_schema,
    "scorers": scorers,
    "searches": searches,
    "methods": methods,
    "plan": plan_schema,
}
"""What is made, by its name in the reference."""
