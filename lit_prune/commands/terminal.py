"""What a user sees of other libraries while a verb runs: none of their warnings, adverts and hints at options."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from types import FrameType
from typing import TextIO

from lit_prune.files import clean

OWN = "lit_prune"
RELAYS = ("warnings.py", "rank_zero.py")
"""Files of functions by which others warn."""
INSTALLED = {"site-packages", "dist-packages"}
ADVERTS = ("Tip: ", "`weights_only` was not set", "Loading `train_dataloader` to estimate")
LIGHTNING = ("lightning.pytorch", "lightning.fabric")
TALKERS = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector", "utilities.seed", "trainer.call")


def quieten(*, training: bool) -> None:
    """Let a process say what lit-prune and its user's own code have to say.

    Of Lightning's lines a `training` shows all but adverts; other verbs show none.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # about which tokenizers warns in forks
    warnings.showwarning = _show
    for logger in (logging.getLogger(f"{package}.{talker}") for package in LIGHTNING for talker in TALKERS):
        logger.addFilter(lambda record: not any(advert in record.getMessage() for advert in ADVERTS))
        if not training:
            logger.setLevel(logging.WARNING)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line where it comes from lit-prune, or from code that is no installed library's."""
    if _is_to_be_told(sys._getframe(1)):
        print(f"lit-prune: warning: {clean(str(message))}", file=sys.stderr)


def _is_to_be_told(frame: FrameType | None) -> bool:
    while frame is not None and Path(frame.f_code.co_filename).name in RELAYS:
        frame = frame.f_back
    if frame is None:
        return True
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] == OWN:
        return True
    path = Path(frame.f_code.co_filename)
    return not (INSTALLED & {*path.parts} or path.is_relative_to(sysconfig.get_path("stdlib")))
