"""The layers of lit_prune, lowest first: what tests/test_layers.py enforces, and the map in CONTRIBUTING.md.

`python -m tests.layers` (`make map`) writes the map from the first sentence of every package.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors"},
    {"files"},
    {"plan"},
    {"anatomy", "searches"},
    {"surgery"},
    {"loading"},
    {"export", "measure"},
    {"costs", "data"},
    {"healing", "scorers"},
    {"pruning", "training"},
    {"evaluation"},
    {"report"},
    {"callbacks"},
    {"commands"},
    {"__main__"},
]
# Folders that lie elsewhere and are shipped as parts of the package.
ELSEWHERE = {
    "callbacks": "lit_prune.callbacks",
    "configs": "lit_prune.commands.configs",
    "configs/methods": "lit_prune.plan.presets",
}
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- map: written by `make map` -->\n", "<!-- end of map -->\n"


def files():
    found = [path for folder in ("lit_prune", *ELSEWHERE) for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*dict.fromkeys(found)]


def shipped_as(folder):
    """The package that a folder of the repository is shipped as."""
    return ELSEWHERE.get(str(folder.relative_to(ROOT))) or ".".join(folder.relative_to(ROOT).parts)


def package_at(path):
    return [*shipped_as(path.parent).split("."), path.stem][1]


def file_of(package):
    places = [
        ROOT / f"lit_prune/{package}.py",
        ROOT / f"lit_prune/{package}/__init__.py",
        ROOT / f"{package}/__init__.py",
    ]
    return next(place for place in places if place.exists())


def first_sentence(path):
    text = " ".join(ast.get_docstring(ast.parse(path.read_text())).split())
    return re.match(r".*?\.(?= |$)", text).group()


def drawn_map():
    lines = []
    for number, packages in reversed(list(enumerate(LAYERS))):
        for package in sorted(packages):
            place = file_of(package)
            name = f"{package}/" if place.name == "__init__.py" else place.name
            told = textwrap.wrap(first_sentence(place), 100)
            lines += [f"{number:>2}  {name:<13}{told[0]}", *(f"{'':17}{line}" for line in told[1:])]
            number = ""
    return "\n".join(["```", *lines, "```", ""])


def page_with_map(page):
    start, end = page.index(START) + len(START), page.index(END)
    return page[:start] + drawn_map() + page[end:]


if __name__ == "__main__":
    PAGE.write_text(page_with_map(PAGE.read_text()))
