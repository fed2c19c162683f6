"""What gets its final name is whole, on the disk too."""

import os

import pytest

from lit_prune.export import save
from lit_prune.plan import PrunePlan
from lit_prune.pruner import Pruner
from lit_prune.writing import folder_aside, write_text
from tests.tiny import tiny_model


@pytest.fixture
def events(monkeypatch):
    """Inodes that were flushed, and the names that were given, in order."""
    seen, flush, rename = [], os.fsync, os.replace

    def flushed(descriptor):
        seen.append(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def renamed(aside, path):
        rename(aside, path)
        seen.append(str(path))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def inodes(*paths):
    return {each.stat().st_ino for each in paths}


@pytest.mark.skipif(os.name != "posix", reason="flushes on POSIX alone")
def test_a_model_is_on_the_disk_before_it_has_its_name_and_the_name_after_it(tmp_path, events):
    model, out = tiny_model("llama"), tmp_path / "out"
    save(model, out, plan=Pruner(model).plan)
    assert PrunePlan.load(out).model.num_blocks == 4
    named = events.index(str(out))
    assert inodes(out, *out.rglob("*")) <= set(events[:named])
    assert events[named + 1] == tmp_path.stat().st_ino


@pytest.mark.skipif(os.name != "posix", reason="flushes on POSIX alone")
def test_a_text_too(tmp_path, events):
    path = write_text(tmp_path / "table.md", "text")
    assert events == [path.stat().st_ino, str(path), tmp_path.stat().st_ino]


def test_what_cannot_be_flushed_gets_no_name(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), folder_aside(tmp_path / "out") as aside:
        (aside / "file").write_text("text")
    assert list(tmp_path.iterdir()) == []
