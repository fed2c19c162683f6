from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_prune.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "bench knows speed and scale; found 'sped'"),
        (["search", "model", "--amount=0.2"], "bench search is now python -m benchmarks.search, run from a checkout"),
        (["memory", "model"], "bench memory is now python -m benchmarks.memory, run from a checkout"),
    ],
)
def test_what_is_no_kind_of_measurement_is_one_clear_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_speeds_are_ratios_of_the_same_turn(folder, tmp_path, monkeypatch, capsys):
    readings = iter(
        [(9.0, 9.0), (9.0, 9.0)] + [each for turn in range(1, 8) for each in ((2.0 * turn, 6.0), (1.0 * turn, 2.0))]
    )
    output = SimpleNamespace()
    monkeypatch.setattr("lit_prune.evaluation.speed._once", lambda *_: (*next(readings, (0.0, 0.0)), output))
    options = [
        "--repeats",
        "7",
        "--warmup",
        "1",
        "--prompt_tokens",
        "8",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "speed.md"),
    ]
    assert main(["bench", "speed", f"{folder},{folder}", *options]) == 0
    page = (tmp_path / "speed.md").read_text()
    assert page in capsys.readouterr().out
    first, second = page.splitlines()[2:4]
    size = sum(each.stat().st_size for each in Path(folder).glob("*.safetensors"))
    assert first.startswith(f"| {folder} (1) | 8000.00 |  | 6000.00 |  | 0.2 | {size / 1e6:.1f} | ")
    ratios = "2.000 (2.000 to 2.000) | 2000.00 | 3.000 (3.000 to 3.000)"
    assert second.startswith(f"| {folder} (2) | 4000.00 | {ratios} | 0.5 | ")


def test_one_model_has_nothing_to_be_compared_with(folder, capsys):
    assert main(["bench", "speed", folder]) == 2
    assert "two models or more" in capsys.readouterr().err
