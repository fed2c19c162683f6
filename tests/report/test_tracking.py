import csv
import io
import sys
from collections import defaultdict
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    LitLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_prune.report import log_figure, log_files, log_scalars, log_text, save_figure, score_map


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


class Run:
    """Of wandb, as its methods are called; it keeps the last of each."""

    def log(self, data):
        self.logged = {**getattr(self, "logged", {}), **data}

    def log_artifact(self, artifact_or_path, name=None, type=None, aliases=None):
        self.file = artifact_or_path


class Client:
    """Of MLflow."""

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        self.image = (run_id, key, image, step)

    def log_text(self, run_id, text, artifact_file):
        self.text = (run_id, artifact_file, text)

    def log_artifact(self, run_id, local_path, artifact_path=None):
        self.file = local_path


class Experiment:
    """Of Comet."""

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        self.image = (name, image_data, step)

    def log_text(self, text, step=None, metadata=None):
        self.text = (text, step, metadata)

    def log_asset(self, file_data, file_name=None, overwrite=False, step=None):
        self.file = file_data


class Series(list):
    """Of litlogger."""

    def append(self, value, step=None):
        super().append((value, step))


def fake(kind, experiment):
    """Lightning's own logger with its end replaced: no package of any is needed."""

    class Fake(kind):
        def __init__(self):
            self._experiment, self._prefix, self._wandb_init = experiment, "", {}

        experiment = property(lambda self: experiment)
        run_id = "r1"

        def log_metrics(self, metrics, step=None):
            experiment.log({**metrics, "trainer/global_step": step})

    return Fake()


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


def logged_by(logger, figure, file):
    log_figure(logger, "map", figure, 3)
    log_text(logger, "answers", "**bold**", 3)
    log_files(logger, [file])


def is_image_of(figure, pixels):
    width, height = (int(each) for each in figure.get_size_inches() * figure.dpi)
    return pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 and pixels.std() > 10


def test_wandb_gets_an_image_a_table_and_a_file(monkeypatch, figure, tmp_path):
    wandb = SimpleNamespace(Image=lambda image, **_: image, Table=lambda **table: table)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    logged_by(fake(WandbLogger, run := Run()), figure, tmp_path / "plan.json")
    assert run.logged["trainer/global_step"] == 3
    (image,) = run.logged["map"]
    assert is_image_of(figure, image)
    assert (run.logged["answers"]["columns"], run.logged["answers"]["data"]) == (["text"], [["**bold**"]])
    assert run.file == str(tmp_path / "plan.json")


def test_mlflow_gets_an_image_markdown_and_a_file(figure, tmp_path):
    logged_by(fake(MLFlowLogger, client := Client()), figure, tmp_path / "plan.json")
    run, key, image, step = client.image
    assert (run, key, step) == ("r1", "map", 3)
    assert is_image_of(figure, image)
    assert client.text == ("r1", "answers.md", "**bold**")
    assert client.file == str(tmp_path / "plan.json")


def test_comet_gets_an_image_a_text_and_a_file(figure, tmp_path):
    logged_by(fake(CometLogger, experiment := Experiment()), figure, tmp_path / "plan.json")
    name, image, step = experiment.image
    assert (name, step) == ("map", 3)
    assert is_image_of(figure, image)
    assert experiment.text == ("**bold**", 3, {"tag": "answers"})
    assert experiment.file == str(tmp_path / "plan.json")


def test_litlogger_gets_an_image_a_text_and_a_file(monkeypatch, figure, tmp_path):
    kinds = {name: lambda content, name=name: (name, content) for name in ("Image", "Text", "File")}
    monkeypatch.setitem(sys.modules, "litlogger", SimpleNamespace(**kinds))
    logged_by(fake(LitLogger, experiment := defaultdict(Series)), figure, tmp_path / "plan.json")
    (((kind, image), step),) = experiment["map"]
    assert (kind, step) == ("Image", 3)
    assert is_image_of(figure, image)
    assert experiment["answers"] == [(("Text", "**bold**"), 3)]
    assert experiment["plan.json"] == ("File", str(tmp_path / "plan.json"))


def test_only_the_first_process_logs(monkeypatch, figure):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = Foreign()
    log_everything(logger, figure)
    assert not logger.metrics
