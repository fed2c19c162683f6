"""What `--help` waits for, and what it says."""

import subprocess
import sys

from lit_prune.__main__ import VERBS

OF_LIGHTNING = ("fit", "validate", "test")
"""Verbs whose parser is LightningCLI's, which wants the classes themselves."""
SCRIPT = """
import contextlib, io, sys
from lit_prune.__main__ import main

for line in {lines}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        main([*line.split(), "--help"])
    assert "usage: lit-prune " + line in " ".join(shown.getvalue().split()), line
    heavy = {{"torch", "transformers", "lightning", "peft", "matplotlib"}} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def test_no_help_waits_for_torch():
    lines = [*(verb for verb in VERBS if verb not in OF_LIGHTNING), "bench speed", "bench draft", "bench scale"]
    script = SCRIPT.format(lines=lines)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
