"""Import paths of earlier versions, kept for scripts, YAML files and pickles that name them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "analysis": "evaluation",
    "analysis.figures": "evaluation.stream_figures",
    "anatomy.adapters": "anatomy.parameters",
    "autoload": "loading.autoload",
    "callbacks.averaging": "callbacks.followers",
    "callbacks.batches": "callbacks.validation",
    "callbacks.loop": "callbacks.trainers",
    "callbacks.randomness": "callbacks.saving",
    "callbacks.sharding": "callbacks.requirements",
    "callbacks.structure": "callbacks.followers",
    "callbacks.surroundings": "callbacks.requirements",
    "candidates": "plan.candidates",
    "checkpoint": "training.checkpoint",
    "commands.processes": "commands.launching",
    "examples": "data.examples",
    "guards": "loading.untrusted",
    "healing.settings": "plan.healing",
    "healing.token_mean": "healing.optimization",
    "markup": "files.markup",
    "measure.costs": "costs.counts",
    "measure.head": "measure.objective",
    "measure.inventory": "costs.inventory",
    "measure.latency": "costs.latency",
    "measure.outputs": "surgery.outputs",
    "measure.prices": "costs.prices",
    "measure.processes": "measure.shares",
    "measure.progress": "pruning.progress",
    "measure.proof": "surgery.proof",
    "measure.stream": "measure.one_pass",
    "measure.weights": "measure.weight_changes",
    "methods": "plan.methods",
    "models": "loading.models",
    "module": "training.lit_causal_lm",
    "names": "loading.sources",
    "placement": "loading.devices",
    "pruner": "pruning.pruner",
    "pruning.goal": "searches.goal",
    "reading": "files.schemas",
    "registry": "plan.registry",
    "report.analysis": "report.analyses",
    "report.analysis_page": "report.analyses",
    "report.anatomy_table": "report.inventory_table",
    "report.answers": "report.evaluations",
    "report.comparison": "report.comparisons",
    "report.evaluation": "report.evaluations",
    "report.markdown": "report.summary",
    "report.page.sources": "report.page.render",
    "report.record": "report.summary",
    "report.screen": "report.pieces",
    "rounds": "pruning.rounds",
    "scorers.distribution": "scorers.impact",
    "scorers.random_order": "scorers.base",
    "sharding": "loading.fsdp",
    "soundness": "plan.prune_plan",
    "sums": "loading.checksums",
    "surgery.passing": "surgery.mute",
    "surgery.rebuild": "surgery.remove",
    "text_files": "files.text_files",
    "texts": "data.texts",
    "windows": "data.windows",
    "writing": "files.atomic",
}
"""Module below `lit_prune` as it was, and as it is; none whose former package offers something else by its name."""
_PACKAGE = "lit_prune."


class _MovedFinder:
    """Finds a module of an earlier version: the same object as under its present name."""

    _finds_moved = True

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
        old = name.removeprefix(_PACKAGE)
        return ModuleSpec(name, self) if name != old and old in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_PACKAGE + MOVED[spec.name.removeprefix(_PACKAGE)])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Python has given it the spec of the old name.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let earlier import paths be found; asked only for what nothing else finds."""
    if not any(hasattr(finder, "_finds_moved") for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())  # type: ignore[arg-type]
