"""What TensorBoard shows of a run, read back from its files."""

import csv
import math

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lit_prune.callbacks import BeforeAfterCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lit_prune.plan import PrunePlan
from tests.callbacks.test_before_after import Data
from tests.callbacks.test_sublayer_prune import loaders, module, pruning, trainer


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def settings_in(events):
    """Names in the table of runs: hyperparameters and figures."""
    found = {}
    for tag in ("_hparams_/experiment", "_hparams_/session_start_info"):
        content = plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
        found[tag.split("/")[1]] = content
    figures = [each.name.tag for each in found["experiment"].experiment.metric_infos]
    return dict(found["session_start_info"].session_start_info.hparams), figures


def test_a_sweep_can_be_sorted_by_what_came_of_it(tmp_path, tokenizer):
    own, callback = module(), pruning(amount=0.3)
    own.tokenizer = tokenizer
    before_after = BeforeAfterCallback("how?", max_new_tokens=3, prompt_tokens=8, new_tokens=2, repeats=1)
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer(tmp_path, callback, before_after, logger=logger).fit(own, datamodule=Data())
    events = events_of(logger.log_dir)
    settings, figures = settings_in(events)
    assert settings["prune/amount"].number_value == 0.3
    names = ["parameters_left", "ppl_rise", "ppl_before", "ppl", "prefill_speedup", "decode_speedup"]
    assert figures == [f"final/{name}" for name in names]
    scalars = {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert "hp_metric" not in scalars
    assert all(math.isfinite(value) for values in scalars.values() for value in values)
    assert all(len(scalars[f"final/{name}"]) == 1 for name in names)
    last = {name: events.Scalars(f"final/{name}")[-1].value for name in names}
    assert all(math.isfinite(value) for value in last.values())
    parameters = sum(each.numel() for each in own.model.parameters())
    assert last["parameters_left"] == pytest.approx(parameters / callback.plan.model.num_parameters)
    steps = callback.plan.steps
    assert last["ppl_rise"] == pytest.approx(
        math.exp(steps[-1].nll_after) / math.exp(steps[0].nll_before) - 1, rel=1e-4
    )
    table = events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(each.removed.name in table for each in steps)


def test_each_removal_tells_what_is_left_of_every_cost(tmp_path):
    callback = pruning(amount=0.2, granularity="attention")
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer(tmp_path, callback, logger=logger).fit(module(), *loaders())
    events = events_of(logger.log_dir)
    num_blocks, num_removed = 4, len(callback.plan.steps)
    assert events.Scalars("prune/kv_cache_left")[-1].value == pytest.approx(1 - num_removed / num_blocks)
    flops = [each.value for each in events.Scalars("prune/flops_left")]
    assert flops == sorted(flops, reverse=True)
    assert 0 < flops[-1] < 1
    steps = [3 * each.epoch for each in callback.plan.steps]  # three batches an epoch
    assert [each.step for each in events.Images("score_map")] == steps
    for name in ("prune/removals", "prune/ppl_after", "prune/parameters_left"):
        assert [each.step for each in events.Scalars(name)] == steps
    assert [each.value for each in events.Scalars("prune/removals")] == list(range(1, num_removed + 1))
    last = callback.plan.steps[-1].removed.name
    assert [each.step for each in events.Scalars(f"score/{last}")] == steps


class Plain(Logger):
    """A logger that takes numbers and settings alone, and keeps all runs in one place."""

    name, version = "project", "b7"

    def __init__(self, save_dir):
        self.folder, self.logged, self.settings = save_dir, [], {}

    @property
    def save_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, set(metrics)))

    def log_hyperparams(self, params):
        self.settings |= params


def test_other_loggers_get_settings_and_figures_on_one_axis_and_files_a_folder_of_the_run(tmp_path, tokenizer):
    own, plain, table = module(), Plain(tmp_path), CSVLogger(tmp_path, name="run")
    own.tokenizer = tokenizer
    callback = pruning(save_to="pruned")
    trainer(tmp_path, callback, logger=[plain, table], log_every_n_steps=1).fit(own, *loaders())
    with open(tmp_path / "run/version_0/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps) == [step for step, _ in plain.logged]
    assert [int(row["step"]) for row in rows if row["train_loss"]] == list(range(9))
    drops = [3 * each.epoch for each in callback.plan.steps]
    assert [int(row["step"]) for row in rows if row["prune/removals"]] == drops
    assert rows[-1]["final/parameters_left"]
    assert "prune/amount" in (tmp_path / "run/version_0/hparams.yaml").read_text()
    assert plain.settings["prune/amount"] == 0.2
    run = tmp_path / "project" / "b7"
    assert PrunePlan.load(run / "prune_plan.json") == callback.plan
    assert (run / "pruned" / "README.md").is_file()
    assert {each.name for each in tmp_path.iterdir()} == {"project", "run"}
