"""`lit-prune prune` in several processes, however they are started: one plan, one folder, one journal."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from lightning.fabric import Fabric
from torch.distributed import TCPStore

from lit_prune import PrunePlan, load
from lit_prune.__main__ import main
from lit_prune.commands.launching import require_shared, reserved_port, start
from lit_prune.errors import LitPruneError
from lit_prune.surgery import removed_sublayers
from tests.commands.test_fit import free_port
from tests.commands.test_verbs import options

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("--devices", marks=pytest.mark.slow),
        "--shard",
        pytest.param("fabric run", marks=pytest.mark.slow),
        pytest.param("torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_processes_write_what_one_writes(tmp_path, model_folder, text, how):
    def command(name):
        output = ["--output", str(tmp_path / name), "--search", "lazy", "--batch_size", "2", "--device", "cpu"]
        return ["prune", str(model_folder), *output, "--amount", "0.3", *options(text)]

    assert main(command("one")) == 0
    lit_prune = [BIN / "lit-prune", *command("two")]
    launch = {
        "--devices": [*lit_prune, "--devices", "2"],
        "--shard": [*lit_prune, "--devices", "2", "--shard", "true"],
        "fabric run": [BIN / "fabric", "run", "--devices=2", "--accelerator=cpu", free_port(), *lit_prune],
        "torchrun": [
            BIN / "torchrun",
            "--nproc-per-node=2",
            f"--master-port={free_port().partition('=')[2]}",
            *lit_prune,
        ],
    }
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    result = subprocess.run(launch[how], check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("written: ") == 1, "two processes, one of which tells"
    one, two = PrunePlan.load(tmp_path / "one"), PrunePlan.load(tmp_path / "two")
    assert two.calibration == one.calibration
    for step, other in zip(two.steps, one.steps, strict=True):
        assert step.removed == other.removed
        assert step.measured == other.measured
        assert step.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-5)
    assert set(removed_sublayers(load(tmp_path / "two"))) == set(one.removed)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "tiny", "text.txt"}, "nothing lies about"


def test_what_cannot_be_started_is_refused(monkeypatch):
    with pytest.raises(LitPruneError, match="devices of their own, not all cpu:0"):
        start(2, "cpu:0")
    for number in (0, -1):
        with pytest.raises(LitPruneError, match="1 or more"):
            start(number, "cpu")
    with pytest.raises(LitPruneError, match="sharded over several processes; give devices"):
        require_shared(None, shard=True)
    monkeypatch.setenv("LT_PRECISION", "bf16-true")
    with pytest.raises(LitPruneError, match="--dtype"):
        start(2, "cpu")


def test_one_process_takes_the_device_that_it_is_told():
    assert start(None, "cpu:0") == (None, "cpu:0")
    assert start(1, "cpu") == (None, "cpu")


def test_a_map_of_devices_is_for_one_process(tmp_path, model_folder, text, capsys):
    command = ["prune", str(model_folder), "--output", str(tmp_path / "out"), "--device_map", "auto", *options(text)]
    for more in (["--device", "cpu"], ["--devices", "2"]):
        assert main([*command, *more]) == 2
        assert "leave out device, devices and launchers" in capsys.readouterr().err
    assert main([*command, "--offload", "true"]) == 0
    assert removed_sublayers(load(tmp_path / "out"))


def test_a_reserved_port_is_free_for_a_server_and_for_nobody_else():
    port = reserved_port()
    given = set()
    for _ in range(20):
        probes = [socket.socket() for _ in range(200)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
            given.add(probe.getsockname()[1])
        for probe in probes:
            probe.close()
    assert port not in given
    assert TCPStore("127.0.0.1", port, 1, is_master=True, timeout=timedelta(seconds=10)).port == port


def test_a_first_process_that_cannot_start_takes_the_others_with_it(tmp_path, model_folder, text):
    """They would wait half an hour for it."""
    command = [BIN / "lit-prune", "prune", model_folder, "--output", tmp_path / "pruned", "--device", "cpu"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(taken.getsockname()[1])}
        result = subprocess.run(  # ends when all who write to its pipes have ended
            [*command, "--devices", "2", *options(text)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
    assert result.returncode == 2
    assert "these processes cannot be started" in result.stderr
    assert not (tmp_path / "pruned").exists()


def test_a_cluster_chooses_the_port_of_its_processes(monkeypatch):
    """The same in all of them, which a port that one of them finds free is not."""
    facts = {"NTASKS": 2, "NTASKS_PER_NODE": 2, "JOB_ID": 123456, "JOB_NAME": "job", "PROCID": 0, "LOCALID": 0}
    for name, value in {**facts, "NODEID": 0, "STEP_NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(Fabric, "launch", lambda fabric: None)
    start(2, "cpu")
    assert "MASTER_PORT" not in os.environ
