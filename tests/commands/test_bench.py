from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_prune.__main__ import main
from lit_prune.evaluation.memory import PROCESS

SIZES = ["--window=16", "--num_windows=4", "--num_unseen=2", "--batch_size=1", "--amount=0.15"]


def test_searches_stand_side_by_side_with_the_naive_one_first(folder, tmp_path, capsys):
    assert main(["bench", "search", folder, f"--output={tmp_path / 'table.md'}", *SIZES]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows] == ["search", "---", "naive", "progressive", "lazy", "one_shot"]
    naive, progressive, lazy, one_shot = rows[2:]
    assert naive[4] == "1.000"
    assert max(float(one_shot[3]), float(lazy[3])) <= float(progressive[3]) < float(naive[3])
    assert naive[-1] == progressive[-1]
    orders = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    assert orders["naive"] == orders["progressive"]


@pytest.mark.skipif(not PROCESS.exists(), reason="reads /proc of Linux")
def test_the_memory_of_a_search_is_told(folder, tmp_path, capsys):
    assert main(["bench", "memory", folder, "--device=cpu", f"--output={tmp_path / 'memory.md'}", *SIZES]) == 0
    text = (tmp_path / "memory.md").read_text()
    assert text in capsys.readouterr().out
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines()[2:])
    assert rows["model"] == f"{45344 * 4 / 1e6:.1f} MB"
    assert rows["states of one sequence"] == f"{4 * 16 * 32 * 4 / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sped"], "bench knows search, memory, speed and scale; found 'sped'"),
        (["search", "--searches=[fast]"], "unknown search 'fast'"),
        (["search", "--amount=2"], "above 0 and below 1"),
        (["search", "--num_unseen=1000000"], "1000004 are asked for"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(folder, capsys, arguments, message):
    what, *rest = arguments
    assert main(["bench", what, folder, *SIZES, *rest]) == 2
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
