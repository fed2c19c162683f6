"""What gets its final name is whole, on the disk too."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from lit_prune.commands.arguments import require_writable, still_free
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.export import require_empty, save
from lit_prune.files import NotPlacedError, folder_aside, reserved, write_text
from lit_prune.plan import PrunePlan
from lit_prune.pruning import Pruner
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


def linked(place, target):
    (place / "link").symlink_to(target)
    return place / "link"


PLACES = {
    "a new folder": lambda place: place / "out",
    "folders to be made": lambda place: place / "one" / "two" / "out",
    "a link to an empty folder": lambda place: linked(place, (place / "empty").mkdir() or "empty"),
    "a link to what is not there yet": lambda place: linked(place, "later/out"),
    "a link to a link": lambda place: linked(place, ((place / "other").symlink_to("out"), "other")[1]),
    "a long name": lambda place: place / ("n" * 239),
    "a name of many bytes": lambda place: place / ("\u00e9" * 119),
}
OBSTACLES = {
    "a file": (lambda place: (place / "file").write_text("mine") and place / "file", "exists already"),
    "a link to a file": (lambda place: linked(place, (place / "file").write_text("mine") and "file"), "exists already"),
    "a full folder": (lambda place: (place / "file").write_text("mine") and place, "exists already"),
    "a pipe": (lambda place: os.mkfifo(place / "pipe") or place / "pipe", "exists already"),
    "a link to itself": (lambda place: linked(place, "link"), "leads to itself"),
    "below a file": (lambda place: (place / "file").write_text("mine") and place / "file/out", "is no folder"),
    "a name too long": (lambda place: place / ("n" * 250), "more than 239 bytes"),
    "no name at all": (lambda place: place / ("n" * 300), "more than 239 bytes"),
    "a mount point": (lambda place: (place / "mounted").mkdir() or place / "mounted", "is a mount point"),
    "a read-only place": (lambda place: place / "no/out", "permission denied to write in .*no"),
}


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("place", PLACES)
def test_what_passes_the_check_can_be_written(place, tmp_path):
    out = PLACES[place](tmp_path)
    was = os.readlink(out) if out.is_symlink() else None
    assert require_empty(out) == Path(os.path.realpath(out))
    with folder_aside(out) as aside:
        (aside / "file").write_text("text")
    assert (out / "file").read_text() == "text"
    assert (os.readlink(out) if out.is_symlink() else None) == was
    assert not [*tmp_path.rglob("*.part")]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("what", OBSTACLES)
def test_what_is_in_the_way_is_told_before_the_work(what, tmp_path, monkeypatch):
    make, reason = OBSTACLES[what]
    (tmp_path / "no").mkdir()
    ismount, access = os.path.ismount, os.access
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted" or ismount(path))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "no" and access(path, mode))
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match=reason):
        require_empty(out)
    if reason != "exists already":  # files may be written anew
        with pytest.raises(LitPruneError, match=reason):
            require_writable(str(out))
    elif out.is_dir():
        require_writable(str(out), inside=True)
        with pytest.raises(LitPruneError, match="it is a folder"):
            require_writable(str(out))
    else:
        with pytest.raises(LitPruneError, match="is no folder"):
            require_writable(str(out), inside=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_get_its_name_after_the_work_is_kept(tmp_path, monkeypatch):
    def busy(aside, path):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "out.1").mkdir()  # taken
    monkeypatch.setattr(os, "replace", busy)
    told = pytest.raises(NotPlacedError, match=rf"busy; what was written is kept as {tmp_path}/out\.2$")
    with told, folder_aside(tmp_path / "out") as aside:
        (aside / "file").write_text("text")
    assert (tmp_path / "out.2/file").read_text() == "text"
    with pytest.raises(NotPlacedError, match=r"kept as .*table\.md\.1$"):
        write_text(tmp_path / "table.md", "text")
    assert (tmp_path / "table.md.1").read_text() == "text"
    assert not [*tmp_path.rglob("*.part")]


def test_what_came_there_during_long_work_is_not_written_over(tmp_path):
    out = tmp_path / "out"
    assert still_free(out) == out
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert still_free(out) == tmp_path / "out.1"


HOLDER = """
import sys, time
from pathlib import Path
from lit_prune.files import reserved

with reserved(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["out", "n" * 239], ids=["short", "long"])
def test_a_killed_process_keeps_no_path_from_others(name, tmp_path):
    path = tmp_path / name
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(Timeout), reserved(path):
                pass
        finally:
            holder.kill()
    with reserved(path), pytest.raises(Timeout), reserved(path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="links and processes of POSIX")
def test_a_path_is_kept_under_all_its_names_and_by_one_process(tmp_path):
    (tmp_path / "link").symlink_to("out")
    with reserved(tmp_path / "link"):
        if (child := os.fork()) == 0:
            with pytest.raises(ZeroDivisionError), reserved(tmp_path / "another"):
                raise ZeroDivisionError
            os._exit(len(list(tmp_path.iterdir())))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, "the link, and what stands for `out`"
        with pytest.raises(Timeout), reserved(tmp_path / "out"):
            pass
    assert [each.name for each in tmp_path.iterdir()] == ["link"]
