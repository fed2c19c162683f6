"""Figures, texts and numbers to whatever logger a run has; what a logger has no place for is left out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_prune.loading.trees import is_a

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@rank_zero_only
def log_scalars(logger: Any, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers by their names, which may change from call to call; every Lightning logger takes them."""
    logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


@rank_zero_only
def log_settings(logger: Any, settings: Mapping[str, Any], figures: Iterable[str] = ()) -> None:
    """Log the settings of a run, and to TensorBoard the names of the figures that `log_scalars` will log later.

    TensorBoard's table of runs shows no figure that was not named with the settings; until it is logged it is NaN.
    """
    named = dict.fromkeys(figures, math.nan)
    if is_a(logger, TensorBoardLogger) and named:
        logger.log_hyperparams(dict(settings), named)
    else:
        logger.log_hyperparams(dict(settings))


@rank_zero_only
def log_figure(logger: Any, tag: str, figure: Figure | Path, step: int) -> None:
    """Log a figure, or the PNG that it was saved to, as an image to TensorBoard, or by wandb's `log_image`."""
    if is_a(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, _pixels(figure), global_step=step, dataformats="HWC")
    elif _takes(logger, "log_image", "key", "images", "step"):
        logger.log_image(key=tag, images=[_pixels(figure)], step=step)


@rank_zero_only
def log_text(logger: Any, tag: str, text: str, step: int) -> None:
    """Log Markdown to TensorBoard, or as a table of one cell by wandb's `log_text`."""
    if is_a(logger, TensorBoardLogger):
        logger.experiment.add_text(tag, text, global_step=step)
    elif _takes(logger, "log_text", "key", "columns", "data", "step"):
        logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)


def _takes(logger: Any, method: str, *names: str) -> bool:
    """Whether a logger has this method with these arguments: loggers share names, not signatures."""
    function = getattr(type(logger), method, None)
    return callable(function) and set(names) <= inspect.signature(function).parameters.keys()


def _pixels(figure: Figure | Path) -> Any:
    """The figure as an image: [height, width, 3], 0 to 255."""
    if isinstance(figure, Path):
        from PIL import Image

        with Image.open(figure) as image:
            return np.asarray(image.convert("RGB"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
