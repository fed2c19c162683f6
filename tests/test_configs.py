"""Every YAML in configs/ is understood, every key of it."""

from pathlib import Path

import pytest

from lit_prune.__main__ import main

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_parses(path, capsys, monkeypatch):
    arguments = ["fit", "--config", str(path), "--print_config"]
    monkeypatch.setattr("sys.argv", ["lit-prune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "SublayerPruneCallback" in capsys.readouterr().out
