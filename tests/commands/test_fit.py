"""`lit-prune fit` in processes of its own: YAML, run folder, `fabric run`, two processes under DDP."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_prune import PrunePlan, TextDataModule, load
from lit_prune.__main__ import main
from lit_prune.commands.fit import launcher_settings, require_world
from lit_prune.commands.launching import reserved_port
from lit_prune.errors import LitPruneError
from tests import naive

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run(*command, **environment):
    variables = {**ENVIRONMENT, **environment}
    return subprocess.run([str(each) for each in command], env=variables, capture_output=True, text=True, timeout=300)


def only_run(config):
    runs = sorted((config.parent / "runs/quickstart").iterdir())
    assert len(runs) == 1, "one training, one folder"
    return runs[0]


def test_the_main_job_leaves_its_run_folder(config):
    result = run(BIN / "lit-prune", "fit", "--config", config)
    assert result.returncode == 0, result.stderr
    folder = only_run(config)
    plan = PrunePlan.load(folder / "pruned")
    assert plan.num_removed_parameters >= 0.1 * plan.model.num_parameters
    model = load(folder / "pruned")
    assert sum(each.numel() for each in model.parameters()) == plan.model.num_parameters - plan.num_removed_parameters
    assert (folder / "score_map.png").read_bytes().startswith(b"\x89PNG")
    summary = (folder / "summary.md").read_text()
    assert f"{plan.model.num_parameters:,}" in summary
    for needed in ("perplexity", "prefill", "decoding", "how?", *(step.removed.name for step in plan.steps)):
        assert needed in summary
    assert "perplexity" in result.stdout, "the summary is on the screen too"
    share = plan.num_removed_parameters / plan.model.num_parameters
    for last in (
        f"{share:.1%} less, 10.0% asked for",
        "precision 32-true, weights in float32",
        f"heal {folder}/pruned",
    ):
        assert last in result.stdout, last
    assert f"written: {folder / 'pruned'}\n" in result.stdout
    assert not re.search(r"Tip:|deprecated|Warning", result.stdout + result.stderr)
    assert list((folder / "checkpoints").glob("*.ckpt"))
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {"val_ppl", "train_loss", "prune/parameters_left", "score/attention.0"} <= set(tags["scalars"])
    assert len(events.Images("score_map")) == len(plan.steps)
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["prune/amount"] == 0.1
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"prune/amount" in hparams, "in the one session that TensorBoard shows"
    assert any("answers" in tag for tag in tags["tensors"])


def free_port():
    """Tests run side by side, and `fabric run` always takes the same port unless it is told another."""
    return f"--main-port={reserved_port()}"


@pytest.mark.parametrize("healing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fabric_run_gives_two_processes_one_result(config, healing):
    """The same drops, losses and weights on both; the first loss is that of one process on the same windows."""
    checker = config.parent / "agree.py"
    checker.write_text(CHECKER)
    original = yaml.safe_load(config.read_text())
    callbacks = original["trainer"]["callbacks"]
    callbacks[0]["init_args"]["healing"] = {"rank": 2} if healing else False
    analysis = {"class_path": "lit_prune.callbacks.SublayerAnalysisCallback", "init_args": {"impact": False}}
    settings = {"trainer": {"callbacks": [*callbacks, analysis, {"class_path": "agree.Agree"}]}}
    extra = config.parent / "extra.yaml"
    extra.write_text(yaml.safe_dump(settings))
    launch = ["run", "--devices=2", "--accelerator=cpu", "--strategy=ddp", free_port(), BIN / "lit-prune"]
    path = os.pathsep.join([str(ROOT), str(config.parent)])
    result = run(BIN / "fabric", *launch, "fit", "--config", config, "--config", extra, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((config.parent / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["world_size"] == 2
    data = TextDataModule(**{**original["data"], "tokenizer": original["model"]["model"]})
    data.setup("fit")
    windows = data.windows("val")
    # Five windows on two processes: the sampler gives the first one out twice.
    padded = [{"input_ids": torch.cat([windows, windows[:1]])}]
    expected = naive.mean_loss(load(original["model"]["model"]), padded)
    assert ranks[0]["losses"][0] == pytest.approx(expected, abs=1e-5)
    analysis = json.loads((only_run(config) / "analysis/analysis.json").read_text())["models"]
    assert analysis[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert analysis[0]["num_tokens"] == padded[0]["input_ids"].numel()
    assert len(analysis) > 1
    plan = PrunePlan.load(only_run(config) / "pruned")
    assert ranks[0]["removed"] == [str(each) for each in plan.removed]
    assert plan.num_removed_parameters >= 0.1 * plan.model.num_parameters


CHECKER = '''
import hashlib, json, os
from pathlib import Path
import lightning as L
from lit_prune.surgery import removed_sublayers

class Agree(L.Callback):
    """Writes what each process ended with."""

    def on_train_end(self, trainer, pl_module):
        digest = hashlib.sha256()
        for _, value in sorted(pl_module.state_dict().items()):
            digest.update(value.cpu().numpy().tobytes())
        plan = trainer.callbacks[0].plan
        found = {
            "world_size": trainer.world_size,
            "weights": digest.hexdigest(),
            "removed": [str(each) for each in plan.removed],
            "structure": [str(each) for each in removed_sublayers(pl_module.model)],
            "losses": [step.nll_before for step in plan.steps],
        }
        Path(__file__).with_name(f"rank{trainer.global_rank}.json").write_text(json.dumps(found))
'''


@pytest.fixture
def fit_with(config, monkeypatch):
    """Fits in this process with one setting of a callback changed: the exit code."""
    # LightningCLI warns where arguments are given and the process has some too.
    monkeypatch.setattr("sys.argv", ["lit-prune"])

    def fit(callback, **changed):
        settings = yaml.safe_load(config.read_text())
        settings["trainer"]["callbacks"][callback]["init_args"] |= changed
        config.write_text(yaml.safe_dump(settings))
        return main(["fit", "--config", str(config)])

    return fit


@pytest.mark.filterwarnings("ignore::Warning")  # of LightningCLI, about its own libraries
def test_an_unknown_key_in_yaml_is_one_error(fit_with, capsys):
    with pytest.raises(SystemExit) as ended:
        fit_with(0, amout=0.1)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1
    assert "Option 'amout' is not accepted" in printed


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize(
    ("callback", "changed", "message"),
    [
        (0, {"amount": 1.5}, "amount is the share"),
        (1, {"prompt_tokens": 500}, "times 504 tokens, the model's context holds 128"),
    ],
    ids=["amount", "prompt_tokens"],
)
def test_what_cannot_work_is_one_line_before_training(config, fit_with, capsys, callback, changed, message):
    assert fit_with(callback, **changed) == 2
    printed = capsys.readouterr().err
    (error,) = [line for line in printed.splitlines() if line.startswith("lit-prune: error:")]
    assert message in error
    assert "Traceback" not in printed
    assert not list((config.parent / "runs").rglob("*.ckpt"))


def test_a_packaged_run_takes_a_callback_by_its_short_name(tmp_path, monkeypatch, capsys):
    added = ["--trainer.callbacks+=SublayerPruneCallback", "--trainer.callbacks.amount=0.3"]
    command = ["fit", "--config", "quickstart", *added, "--print_config"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit-prune", *command])
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    assert settings["model"]["model"] == quickstart["model"]["model"]
    *_, last = settings["trainer"]["callbacks"]
    assert len(settings["trainer"]["callbacks"]) == len(quickstart["trainer"]["callbacks"]) + 1
    assert last["class_path"] == "lit_prune.callbacks.SublayerPruneCallback"
    assert last["init_args"]["amount"] == 0.3


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_fit_that_prunes_nothing_says_so(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    monkeypatch.chdir(tmp_path)  # without a logger the settings are saved right there
    settings = yaml.safe_load(config.read_text())
    settings["trainer"].update(callbacks=[], logger=False, max_epochs=1, enable_checkpointing=False)
    config.write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(config)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "nothing will be pruned" in line]
    assert "--trainer.callbacks+=SublayerPruneCallback" in line


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_seed_that_cannot_be_is_one_line(config, fit_with, capsys):
    config.write_text(config.read_text() + f"seed_everything: {10**20}\n")
    assert fit_with(0) == 2
    assert re.search("lit-prune: error: seed_everything: .* not in bounds", capsys.readouterr().err)


def test_settings_of_fabric_run_reach_the_trainer_and_nothing_else_does():
    given = {"LT_CLI_USED": "1", "LT_DEVICES": "2", "LT_NUM_NODES": "1", "LT_PRECISION": "32", "LT_ACCELERATOR": "cpu"}
    expected = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": "32"}
    assert launcher_settings(given) == expected
    assert launcher_settings({**given, "LT_DEVICES": "0,1"})["devices"] == "0,1"
    assert launcher_settings({name: value for name, value in given.items() if name != "LT_CLI_USED"}) == {}


def test_processes_that_would_train_apart_are_refused():
    with pytest.raises(LitPruneError, match=r"2 processes .* told of 1.* --trainer.devices=2"):
        require_world({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, 1)
    require_world({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, 2)
    require_world({"WORLD_SIZE": "2"}, 1)
