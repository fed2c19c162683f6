"""What W&B, MLflow and Comet keep of a fit, read back; each where its package is installed."""

import json
import zipfile

import pytest
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, WandbLogger
from lit_prune.callbacks import BeforeAfterCallback

from tests.callbacks.test_sublayer_prune import loaders, module, pruning, trainer

pytestmark = [pytest.mark.filterwarnings("ignore")]  # of their own
FILES = {"prune_plan.json", "README.md", "summary.md", "summary.json", "score_map.png"}


@pytest.fixture
def fit(tmp_path, tokenizer):
    """Fits with a logger, and gives the steps of its removals."""

    def fit(logger):
        own, callback = module(), pruning(save_to="pruned")
        own.tokenizer = tokenizer
        before_after = BeforeAfterCallback("how?", max_new_tokens=3, repeats=0)
        trainer(tmp_path, callback, before_after, logger=logger, log_every_n_steps=1).fit(own, *loaders())
        assert (tmp_path / str(logger.name) / logger.version / "pruned" / "README.md").is_file()
        return [3.0 * each.epoch for each in callback.plan.steps]

    return fit


def test_wandb(fit, tmp_path):
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, project="project", offline=True)
    fit(logger)
    run = logger.experiment
    assert (run.summary["prune/removals"] > 0, run.summary["trainer/global_step"]) == (True, 9)
    assert {"score_map", "plan", "answers", "final/ppl"} <= set(run.summary.keys())
    assert run.config["prune/amount"] == 0.2
    wandb.finish()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert all(f"run-{logger.version}-{name}".encode() in kept.read_bytes() for name in FILES)


def test_mlflow(fit, tmp_path):
    pytest.importorskip("mlflow")
    logger = MLFlowLogger("p", tracking_uri=f"sqlite:///{tmp_path}/db", artifact_location=str(tmp_path / "kept"))
    steps = fit(logger)
    client = logger.experiment
    assert [each.step for each in client.get_metric_history(logger.run_id, "prune/removals")] == steps
    assert client.get_run(logger.run_id).data.params["prune/amount"] == "0.2"
    assert {each.path for each in client.list_artifacts(logger.run_id)} == {*FILES, "images", "plan.md", "answers.md"}


def test_comet(fit, tmp_path, monkeypatch):
    pytest.importorskip("comet_ml")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    logger = CometLogger(project="project", offline_directory=str(tmp_path))
    steps = fit(logger)
    logger.experiment.end()
    (kept,) = tmp_path.glob("*.zip")
    lines = zipfile.ZipFile(kept).read("messages.json").decode().splitlines()
    sent = [json.loads(line)["payload"] for line in lines]
    metrics = [each["metric"] for each in sent if isinstance(each.get("metric"), dict)]
    assert [each["step"] for each in metrics if each["metricName"] == "prune/removals"] == steps
    named = {(each.get("additional_params") or {}).get("fileName") for each in sent}
    assert named >= FILES
    assert {(each.get("metadata") or {}).get("tag") for each in sent} >= {"plan", "answers"}
