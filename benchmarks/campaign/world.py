"""What faults are injected into: a tiny model, the commands, and what they write when nothing disturbs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign import children
from benchmarks.campaign.children import Child, Wrong

LEFT = ("out", "pruned", "kept", "config.yaml")
"""What a program leaves that ended well."""
Case = Callable[["World", Random], str]
"""Injects one fault; its outcome in words. Raises `Wrong`."""


class World:
    """A temporary folder with a model, a text, and a folder for every case.

    Attributes:
        base: The folder; cases that went wrong stay in it.
        log: What the last child said.
    """

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="campaign-"))
        self.base.chmod(0o755)
        self.dense, self.text = self.base / "dense", self.base / "text.txt"
        self.log = self.base / "log.txt"
        self._number = 0
        self.text.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
        self.paragraphs = self.base / "paragraphs.txt"
        self.paragraphs.write_text("\n\n".join([self.text.read_text()] * 10))
        self.require(children.fork(partial(_make_model, self.dense), self.log).wait() == 0, "no model")

    def case(self) -> Path:
        """A new folder."""
        self._number += 1
        folder = self.base / f"case{self._number}"
        folder.mkdir()
        return folder

    def prune(self, folder: Path, method: str = "nri") -> list[str]:
        """The arguments of `lit-prune prune`."""
        options = ["--method", method]
        options += ["--amount", "0.3", "--batch_size", "2", "--num_windows", "6", "--window", "48", "--device", "cpu"]
        return ["prune", str(self.dense), "--output", str(folder / "out"), "--data", str(self.text), *options]

    def portfolio(self, folder: Path) -> list[str]:
        """The same, of whole sets."""
        return self.prune(folder, "nri-portfolio")

    def heal(self, folder: Path) -> list[str]:
        """The arguments of `lit-prune heal`."""
        pruned = self.undisturbed["prune"] / "out"
        sizes = ["--window", "96", "--val_windows", "6", "--training.tokens", "2500", "--lora.rank", "4"]
        files = ["--output", str(folder / "out"), "--data", f"[{self.text}]", "--device", "cpu"]
        return ["heal", str(pruned), *files, *sizes, "--training.validations", "3", "--training.repair", "0.5"]

    def fit_command(self, folder: Path) -> list[str]:
        """The arguments of `lit-prune fit`, with the last whole checkpoint in `folder/kept` to go on from."""
        from benchmarks.campaign.programs import NUM_EPOCHS, last_whole

        pruning = {"amount": 0.3, "healing": {"rank": 2}, "save_to": str(folder / "pruned"), "progress": False}
        keeping = {"dirpath": str(folder / "kept"), "save_top_k": -1, "filename": "{epoch}"}
        callbacks = [
            {"class_path": "lit_prune.callbacks.SublayerPruneCallback", "init_args": pruning},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keeping},
        ]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": NUM_EPOCHS, "default_root_dir": str(folder)}
        data = {"source": str(self.paragraphs), "window": 32, "batch_size": 4, "train_windows": 12, "val_windows": 6}
        settings = {
            "seed_everything": 3,
            "trainer": {**trainer, **quiet, "callbacks": callbacks},
            "model": {"model": str(self.dense), "learning_rate": 1e-3},
            "data": data,
        }
        last = last_whole(folder / "kept", tell=lambda _: None)
        given = [f"--{name}={json.dumps(value)}" for name, value in settings.items()]
        return ["fit", *given, *([f"--ckpt_path={last}"] if last else [])]

    def work(self, program: str, folder: Path, before: Callable[[], object] = lambda: None) -> Callable[[], object]:
        """A program's work, for a child."""
        if program == "fit":
            from benchmarks.campaign.programs import fit

            def script() -> None:
                before()
                fit(self.dense, folder)

            return script
        return children.command(getattr(self, program)(folder), before)

    def fork(self, program: str, folder: Path, before: Callable[[], object] = lambda: None) -> Child:
        """Begin a program."""
        return children.fork(self.work(program, folder, before), self.log)

    def result(self, program: str, folder: Path) -> Path:
        """The folder that a program ends with."""
        return folder / ("pruned" if program.startswith("fit") else "out")

    @cached_property
    def undisturbed(self) -> dict[str, Path]:
        """The folders of runs without a fault."""
        return _Runs(self)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """What the undisturbed runs took, of those that were asked for."""
        return {}

    def seconds_of(self, program: str) -> float:
        """What an undisturbed run of a program takes."""
        self.undisturbed[program]
        return self.seconds[program]

    def require(self, truth: bool, what: str) -> None:
        """Raise `Wrong` with what the child said."""
        if not truth:
            said = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
            raise Wrong(f"{what}; the last child said:\n{said}")

    def require_whole(self, program: str, folder: Path) -> bool:
        """After a fault: nothing has its final name but what is whole. Whether the result is there."""
        result = self.result(program, folder)
        if result.exists():
            self.require_same(program, folder)
        for path in folder.glob("[!.]*.json*"):  # what is hidden has no final name, or is a lock
            lines = path.read_bytes().split(b"\n")[:-1] if path.suffix == ".jsonl" else [path.read_bytes()]
            for line in lines:
                try:
                    json.loads(line)
                except ValueError:
                    self.require(False, f"{path} is half-written: {line[-80:]!r}")
        return result.exists()

    def require_same(self, program: str, folder: Path, undisturbed: Path | None = None) -> None:
        """The result is that of an undisturbed run, file by file: of this program's, or the given one."""
        expected = contents(self.result(program, undisturbed or self.undisturbed[program]))
        found = contents(self.result(program, folder))
        if (journal := folder / "out.search.jsonl").exists():
            found.setdefault("search.jsonl", _content(journal))  # killed when all but its last move was done
        names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        self.require(not names, f"{', '.join(names)} of {folder} is not that of an undisturbed run")

    def finish(self, program: str, folder: Path) -> None:
        """The same command again, to its end: the undisturbed result, and nothing else lies about."""
        if not self.require_whole(program, folder):
            code = self.fork(program, folder).wait()
            self.require(code == 0, f"the same command given again ends with {code}")
            self.require_same(program, folder)
            left = sorted(path.name for path in folder.iterdir() if path.name not in LEFT)
            self.require(not left, f"{left} lies about")
        shutil.rmtree(folder)


class _Runs(dict[str, Path]):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __missing__(self, program: str) -> Path:
        folder = self.world.case()
        child = self.world.fork(program, folder)
        self.world.require(child.wait() == 0, f"{program} fails undisturbed")
        self.world.seconds[program] = child.seconds
        self[program] = folder
        return folder


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a model's folder by its digest; of a plan what was decided, of a journal what was measured."""
    return {path.name: _content(path) for path in sorted(folder.iterdir())}


def _content(path: Path) -> Any:
    if path.name == "prune_plan.json":
        plan = json.loads(path.read_text())
        del plan["sha256"]
        plan["healing"].pop("seconds", None)
        for step in plan["steps"]:
            del step["cost"]  # counts what had to be done again
        plan["compensation"].pop("cost", None)
        return plan
    if path.name.endswith("search.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        return {(*line["without"], line["batch"]): line["nll"] for line in lines}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _make_model(folder: Path) -> None:
    from tests.tiny import character_tokenizer, tiny_model

    tiny_model("llama", num_hidden_layers=6).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read it
