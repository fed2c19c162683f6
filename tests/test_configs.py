"""Every YAML in configs/ is understood, every key of it."""

import re
from pathlib import Path

import pytest
import yaml

from lit_prune.__main__ import main
from lit_prune.anatomy import find_sublayers
from lit_prune.evaluation import shaped

CONFIGS = Path(__file__).parent.parent / "configs"
ARGUMENTS = {"": ["fit"], "models": ["fit"], "ablations": ["compare", "model", "--output=folder"]}
SHOWN = {"": "SublayerPruneCallback", "models": "SublayerPruneCallback", "ablations": "methods:"}
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
    from lit_prune.commands.compare import read_lines

    lines = read_lines(yaml.safe_load(path.read_text())["methods"])
    assert len({each["label"] for each in lines}) == len(lines) > 3


PARAMETERS = {  # of the files on the hub, in blocks of so many
    "llama-3.1-8b": (8_030_261_248, 32), "llama-2-7b": (6_738_415_616, 32), "qwen3-8b": (8_190_735_360, 36),
    "mistral-7b": (7_248_023_552, 32), "opt-6.7b": (6_658_473_984, 32), "gemma-3-4b": (4_300_079_472, 34),
    "gemma-3-12b": (12_187_325_040, 48),
}  # fmt: skip
MODELS = sorted((CONFIGS / "models").glob("*.yaml"))


def test_every_model_with_a_config_is_of_the_published_size_and_all_its_sublayers_are_found():
    assert {path.stem for path in MODELS} == set(PARAMETERS)
    for name, (num_parameters, num_blocks) in PARAMETERS.items():
        model = shaped(name)
        anatomy = find_sublayers(model)
        assert anatomy.num_parameters == sum(each.numel() for each in model.parameters()) == num_parameters
        assert [str(each.id) for each in anatomy.sublayers] == [
            f"{kind}.{block}" for block in range(num_blocks) for kind in ("attention", "mlp")
        ]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_what_a_config_says_of_its_search_is_what_its_command_says(path, capsys):
    text, config = path.read_text(), yaml.safe_load(path.read_text())
    pruning, data = config["trainer"]["callbacks"][0]["init_args"], config["data"]
    command = (
        f"lit-prune bench scale {path.stem} --amount {pruning['amount']} --window {data['window']} "
        f"--num_windows {data['val_windows']} --batch_size {data['batch_size']} --modes '[{pruning['search']}]' "
        "--flops '[4e14, 3.2e15]'"
    )
    assert f"# {command}\n" in text
    assert main([word.strip("'") for word in re.findall(r"'[^']*'|\S+", command)[1:]]) == 0
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in table if row[0] == path.stem]
    passes, (one, eight), gigabytes = rows[0][-1], rows[1][-2:], rows[2][-2]
    said = " ".join(text.partition("\nseed_everything")[0].replace("\n# ", " ").split())
    assert f"{passes} passes over {data['val_windows']} windows of 2,048 tokens, {one} hours at 4e14 FLOP/s" in said
    assert f"{eight} at 3.2e15 (eight" in said
    assert f"{gigabytes} GB on each" in said
