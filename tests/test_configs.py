"""Every YAML in configs/ is understood, every key of it."""

from pathlib import Path

import pytest

from lit_prune.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
ARGUMENTS = {"": ["fit"], "ablations": ["compare", "model", "--output=folder"]}
SHOWN = {"": "SublayerPruneCallback", "ablations": "methods:"}
CASES = [(folder, path) for folder in ARGUMENTS for path in sorted((CONFIGS / folder).glob("*.yaml"))]


@pytest.mark.parametrize(("folder", "path"), CASES, ids=[path.name for _, path in CASES])
def test_a_config_parses(folder, path, capsys, monkeypatch):
    arguments = [*ARGUMENTS[folder], "--config", str(path), "--print_config"]
    monkeypatch.setattr("sys.argv", ["lit-prune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert SHOWN[folder] in capsys.readouterr().out


def test_every_logger_goes_behind_a_run(capsys, monkeypatch):
    # Each is checked as it takes the place of the one before; Comet's have a key of their own.
    names = sorted((path.stem for path in (CONFIGS / "loggers").glob("*.yaml")), key="comet".__eq__)
    assert set(names) == {"comet", "csv", "litlogger", "mlflow", "tensorboard", "wandb"}
    monkeypatch.setattr("sys.argv", ["lit-prune"])
    configs = [f"--config=loggers/{name}" for name in names]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=quickstart", *configs, "--print_config"])
    assert stop.value.code == 0
    assert "class_path: lightning.pytorch.loggers.CometLogger" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((CONFIGS / "ablations").glob("*.yaml")), ids=lambda path: path.name)
def test_an_ablation_names_known_methods(path):
    import yaml

    from lit_prune.commands.compare import read_lines

    lines = read_lines(yaml.safe_load(path.read_text())["methods"])
    assert len({each["label"] for each in lines}) == len(lines) > 3
