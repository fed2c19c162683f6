import csv
import io
import sys
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_prune.report import log_figure, log_scalars, log_text, save_figure, score_map


@pytest.fixture
def figure():
    return score_map([{"mlp.0": 1.0, "mlp.1": 2.0}], ["mlp.0"], num_blocks=2)


class Foreign(Logger):
    """A logger whose methods have the names that we know, and other arguments."""

    name, version = "foreign", 0

    def __init__(self):
        self.metrics, self.others = [], []

    @property
    def experiment(self):
        return None

    def log_metrics(self, metrics, step=None):
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_image(self, picture):
        self.others.append(picture)

    def log_text(self, text, *, where):
        self.others.append(text)


class Wandb(WandbLogger):
    """Lightning's own logger with its end replaced: wandb itself is not installed."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


def log_everything(logger, figure):
    log_scalars(logger, {"score/mlp.0": 1.0}, 3)
    log_figure(logger, "map", figure, 3)
    log_text(logger, "answers", "**bold**", 3)


def test_tensorboard_gives_back_what_was_logged(tmp_path, figure):
    logger = TensorBoardLogger(tmp_path)
    log_everything(logger, figure)
    log_scalars(logger, {"score/mlp.1": 2.5}, 7)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("score/mlp.0")] == [(3, 1.0)]
    assert [(each.step, each.value) for each in events.Scalars("score/mlp.1")] == [(7, 2.5)]
    (image,) = events.Images("map")
    width, height = (int(each) for each in figure.get_size_inches() * figure.dpi)
    assert (image.step, image.width, image.height) == (3, width, height)
    pixels = matplotlib.image.imread(io.BytesIO(image.encoded_image_string), format="png")
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 100
    (text,) = events.Tensors("answers/text_summary")
    assert text.step == 3
    assert text.tensor_proto.string_val[0] == b"**bold**"


def test_csv_takes_numbers_whose_names_change_and_nothing_else(tmp_path, figure):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    log_everything(logger, figure)
    log_scalars(logger, {"score/mlp.1": np.float32(2.5)}, 4)
    log_scalars(logger, {"score/mlp.0": float("inf")}, 5)
    logger.save()
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"score/mlp.0": "1.0", "score/mlp.1": "", "step": "3"},
        {"score/mlp.0": "", "score/mlp.1": "2.5", "step": "4"},
        {"score/mlp.0": "inf", "score/mlp.1": "", "step": "5"},
    ]


def test_a_logger_with_other_arguments_gets_only_the_numbers(figure):
    logger = Foreign()
    log_everything(logger, figure)
    assert logger.metrics == [({"score/mlp.0": 1.0}, 3)]
    assert not logger.others


def test_a_figure_in_a_file_is_shown_as_it_is(tmp_path, figure):
    logger = TensorBoardLogger(tmp_path)
    log_figure(logger, "map", save_figure(figure, tmp_path / "map.png"), 3)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (image,) = events.Images("map")
    found = matplotlib.image.imread(io.BytesIO(image.encoded_image_string), format="png")
    assert np.array_equal(found[..., :3], matplotlib.image.imread(tmp_path / "map.png")[..., :3])


def test_a_dummy_logger_is_no_trouble(figure):
    assert log_everything(DummyLogger(), figure) is None


def test_wandb_gets_an_image_and_a_table(monkeypatch, figure):
    wandb = SimpleNamespace(Image=lambda image, **_: image, Table=lambda **table: table)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    logger = Wandb()
    log_everything(logger, figure)
    (scalars, first), (images, second), (texts, third) = logger.logged
    assert (first, second, third) == (3, 3, 3)
    assert scalars == {"score/mlp.0": 1.0}
    (image,) = images["map"]
    width, height = (int(each) for each in figure.get_size_inches() * figure.dpi)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
    assert (texts["answers"]["columns"], texts["answers"]["data"]) == (["text"], [["**bold**"]])


def test_only_the_first_process_logs(monkeypatch, figure):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = Foreign()
    log_everything(logger, figure)
    assert not logger.metrics
