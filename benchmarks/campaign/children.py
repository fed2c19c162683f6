"""Programs as processes: forked from a parent that has imported everything, or started as a user starts them.

A forked child begins in milliseconds what `python -m lit_prune` begins after ten seconds of imports, and runs the same
code from there on. The parent itself computes nothing, so that no thread of it is lost in the fork.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds after which a process counts as hanging."""


class Wrong(Exception):
    """Something was lost, half-written, hanging or silently wrong."""


def warm_up() -> None:
    """Import what children need, once."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    import torch

    import benchmarks.campaign.programs  # noqa: F401

    torch.set_num_threads(1)


@dataclass
class Child:
    """A process, what it says, and when it began."""

    pid: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    begin: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """Its exit code, that of a signal below zero; None while it runs."""
        if self.process is not None:
            return self.process.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, seconds: float = PATIENCE) -> int:
        """Until it has ended."""
        while (code := self.poll()) is None:
            if time.monotonic() - self.begin > seconds:
                self.end()
                raise Wrong(f"it hangs after {seconds:.0f} seconds; it said {self.said()[-500:]}")
            time.sleep(0.002)
        return code

    def strike(self, seconds: float, number: int = signal.SIGKILL) -> int:
        """Send it a signal so long after its beginning, where it still runs, and wait for its end."""
        while self.seconds < seconds:
            if (code := self.poll()) is not None:
                return code
            time.sleep(0.001)
        os.kill(self.pid, number)
        return self.wait()

    def end(self) -> None:
        """Kill it and all that it has started."""
        os.killpg(self.pid, signal.SIGKILL)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begin

    def said(self) -> str:
        """On both streams."""
        return self.log.read_text(errors="replace")


def fork(work: Callable[[], object], log: Path) -> Child:
    """Run a function in a process of its own, a session leader as a command of a shell is."""
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 1
    try:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = int(work() or 0)  # type: ignore[call-overload]
    except KeyboardInterrupt:
        code = 130
        traceback.print_exc()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: list[str], before: Callable[[], object] = lambda: None) -> Callable[[], object]:
    """The function that `python -m lit_prune` calls, with what is done to the process before."""

    def work() -> object:
        from lit_prune.__main__ import main

        before()
        return main(arguments)

    return work


def start(arguments: list[str], log: Path) -> Child:
    """`python -m lit_prune`, as a user starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "lit_prune", *arguments],
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    return Child(process.pid, log, process)


def kill_at(number: int, folder: Path) -> None:
    """Let this process die by force before so many of its accesses to files below a folder."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree"):
            return
        if any(
            str(folder) in os.fsdecode(argument)
            for argument in arguments
            if isinstance(argument, str | bytes | os.PathLike)
        ):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
