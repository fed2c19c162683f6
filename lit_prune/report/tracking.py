"""Figures, texts, files and numbers to whatever logger a run has; what a logger has no place for is left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_prune.loading.trees import TREES, is_a

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Places:
    """Where a logger keeps what is no number; each function takes the logger first.

    `image` takes a tag, pixels of [height, width, 3] from 0 to 255, and the step; `text` a tag, Markdown, and the step;
    `file` a path, and is None where files stay in the run's folder.
    """

    image: Callable[[Any, str, Any, int], object]
    text: Callable[[Any, str, str, int], object]
    file: Callable[[Any, Path], object] | None = None


@rank_zero_only
def log_scalars(logger: Any, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers by their names, which may change from call to call; every Lightning logger takes them."""
    logger.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


@rank_zero_only
def log_settings(logger: Any, settings: Mapping[str, Any], figures: Iterable[str] = ()) -> None:
    """Log the settings of a run, and to TensorBoard the names of the figures that `log_scalars` will log later.

    TensorBoard's table of runs shows no figure that was not named with the settings.
    """
    if is_a(logger, TensorBoardLogger):
        # It would log -1, which nobody measured, with the settings that Lightning logs after these.
        logger._default_hp_metric = False
        # A dict of scalars, and an empty one: the name is told, and no value.
        logger.log_hyperparams(dict(settings), {name: {} for name in figures})
    else:
        logger.log_hyperparams(dict(settings))


@rank_zero_only
def log_figure(logger: Any, tag: str, figure: Figure | Path, step: int) -> None:
    """Log a figure, or the PNG that it was saved to, as an image; to unknown loggers by a `log_image` like wandb's."""
    if (places := _places(logger)) is not None:
        places.image(logger, tag, _pixels(figure), step)
    elif _takes(logger, "log_image", "key", "images", "step"):
        _wandb_image(logger, tag, _pixels(figure), step)


@rank_zero_only
def log_text(logger: Any, tag: str, text: str, step: int) -> None:
    """Log Markdown as it is; to wandb, and unknown loggers with a `log_text` like its, as a table of one cell."""
    if (places := _places(logger)) is not None:
        places.text(logger, tag, text, step)
    elif _takes(logger, "log_text", "key", "columns", "data", "step"):
        _wandb_text(logger, tag, text, step)


@rank_zero_only
def log_files(logger: Any, files: Iterable[Path]) -> None:
    """Copy files of the run's folder to where a logger keeps files, by their names."""
    if (places := _places(logger)) is not None and places.file is not None:
        for file in files:
            places.file(logger, file)


def _places(logger: Any) -> Places | None:
    """Those of Lightning's own loggers; a stranger's class may have the same name, and other methods."""
    for each in type(logger).__mro__:
        if each.__module__.partition(".")[0] in TREES and each.__name__ in PLACES:
            return PLACES[each.__name__]
    return None


def _takes(logger: Any, method: str, *names: str) -> bool:
    """Whether a logger has this method with these arguments: loggers share names, not signatures."""
    function = getattr(type(logger), method, None)
    return callable(function) and set(names) <= inspect.signature(function).parameters.keys()


def _tensorboard_image(logger: Any, tag: str, pixels: Any, step: int) -> None:
    logger.experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")


def _tensorboard_text(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.add_text(tag, text, global_step=step)


def _wandb_image(logger: Any, tag: str, pixels: Any, step: int) -> None:
    logger.log_image(key=tag, images=[pixels], step=step)


def _wandb_text(logger: Any, tag: str, text: str, step: int) -> None:
    logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)


def _wandb_file(logger: Any, file: Path) -> None:
    logger.experiment.log_artifact(str(file), type="lit-prune")  # named by run and file


def _mlflow_image(logger: Any, tag: str, pixels: Any, step: int) -> None:
    logger.experiment.log_image(logger.run_id, pixels, key=tag, step=step)


def _mlflow_text(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.log_text(logger.run_id, text, f"{tag}.md")


def _mlflow_file(logger: Any, file: Path) -> None:
    logger.experiment.log_artifact(logger.run_id, str(file))


def _comet_image(logger: Any, tag: str, pixels: Any, step: int) -> None:
    logger.experiment.log_image(pixels, name=tag, step=step)


def _comet_text(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.log_text(text, step=step, metadata={"tag": tag})


def _comet_file(logger: Any, file: Path) -> None:
    logger.experiment.log_asset(str(file), file_name=file.name)


def _litlogger_image(logger: Any, tag: str, pixels: Any, step: int) -> None:
    from litlogger import Image

    logger.experiment[tag].append(Image(pixels), step=step)


def _litlogger_text(logger: Any, tag: str, text: str, step: int) -> None:
    from litlogger import Text

    logger.experiment[tag].append(Text(text), step=step)


def _litlogger_file(logger: Any, file: Path) -> None:
    from litlogger import File

    logger.experiment[file.name] = File(str(file))  # the logger's log_file names it by its whole path


PLACES = {
    "TensorBoardLogger": Places(_tensorboard_image, _tensorboard_text),
    "WandbLogger": Places(_wandb_image, _wandb_text, _wandb_file),
    "MLFlowLogger": Places(_mlflow_image, _mlflow_text, _mlflow_file),
    "CometLogger": Places(_comet_image, _comet_text, _comet_file),
    "LitLogger": Places(_litlogger_image, _litlogger_text, _litlogger_file),
}
"""Of Lightning's loggers, by the names of their classes: their packages need not be there."""


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
