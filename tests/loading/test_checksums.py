"""Files that have changed since they were written: seen where it matters, and a way on for whoever changed them."""

import json
import os
import random
import subprocess
import zipfile

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import LitCausalLM, LoraHealing, PrunePlan, load
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError, PlanError
from lit_prune.export import save
from lit_prune.files import name_aside, write_text
from lit_prune.healing import attach_lora, save_adapter
from lit_prune.plan import Candidate, PruneStep, SublayerId
from lit_prune.surgery import remove
from tests.callbacks.test_sublayer_prune import loaders, module, pruning, trainer
from tests.tiny import tiny_model


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("llama")
    remove(model, [SublayerId(1, "mlp")])
    return save(model, tmp_path / "pruned")


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_in_a_weight_is_seen(folder):
    weights = folder / "model.safetensors"
    flip(weights, weights.stat().st_size - 1000)
    with pytest.raises(ModelError, match=r"model\.safetensors is not what lit-prune wrote.*delete weights\.sha256"):
        load(folder)
    (folder / "weights.sha256").unlink()
    load(folder)


def test_a_changed_config_is_seen(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 3e-06'))
    with pytest.raises(ModelError, match=r"config\.json is not what"):
        load(folder)


@pytest.mark.parametrize("sums", ["", "no checksums", "00  model.safetensors\n", "00  gone.safetensors\n"])
def test_damaged_checksums_are_no_reason_to_be_silent_or_stuck(folder, sums):
    (folder / "weights.sha256").write_text(sums)
    if sums:
        with pytest.raises(ModelError, match=r"delete weights\.sha256"):
            load(folder)
        (folder / "weights.sha256").unlink()
    load(folder)


def test_sha256sum_reads_them(folder):
    told = subprocess.run(["sha256sum", "-c", "weights.sha256"], cwd=folder, check=True, capture_output=True, text=True)
    assert told.stdout == "config.json: OK\nmodel.safetensors: OK\n"


def test_adapters_have_them_too(tmp_path):
    model = tiny_model("llama")
    attach_lora(model, LoraHealing(rank=2))
    adapter = save_adapter(model, tmp_path / "adapter", base="base")
    assert "adapter_model.safetensors" in (adapter / "weights.sha256").read_text()


def test_saved_anew_by_others_they_are_absent(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "weights.sha256").exists()
    load(tmp_path / "elsewhere")


def test_a_plan_whose_decision_has_flipped_is_refused_and_one_laid_out_otherwise_is_not(tmp_path):
    steps = tuple(PruneStep(Candidate.parse(f"mlp.{number}"), 9, 0.25) for number in (1, 2))
    plan = PrunePlan(find_sublayers(tiny_model("llama")).facts(), steps)
    path = plan.save(tmp_path / "plan.json")
    whole = path.read_text()
    path.write_text(whole.replace("mlp.1", "mlp.3"))
    with pytest.raises(PlanError, match="not what was written.*delete the line with its sha256"):
        PrunePlan.load(path)
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_text(json.dumps(data))
    assert str(PrunePlan.load(path).removed[0]) == "mlp.3"
    path.write_text(whole.replace("\n", " "))
    assert PrunePlan.load(path) == plan


@pytest.fixture
def checkpoint(tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{epoch}")
    trainer(tmp_path, pruning(), keep, max_epochs=2).fit(module(), *loaders())
    return tmp_path / "kept" / "epoch=0.ckpt"


def flip_weight(checkpoint):
    """In the largest tensor, which torch reads without looking at its checksum."""
    with zipfile.ZipFile(checkpoint) as archive:
        tensors = [each for each in archive.infolist() if "/data/" in each.filename]
        largest = max(tensors, key=lambda each: each.file_size)
        position = archive.read(largest.filename)[100:164]
    flip(checkpoint, checkpoint.read_bytes().index(position) + 3, bit=6)
    torch.load(checkpoint, weights_only=False)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path, checkpoint):
    flip_weight(checkpoint)
    with pytest.raises(ModelError, match=r"checkpoint .*epoch=0\.ckpt is damaged"):
        trainer(tmp_path, pruning(), max_epochs=2).fit(module(), *loaders(), ckpt_path=checkpoint)
    with pytest.raises(ModelError, match=r"checkpoint .*epoch=0\.ckpt is damaged"):
        LitCausalLM.load_from_checkpoint(checkpoint, model=tiny_model("llama"))


def test_what_a_killed_process_left_is_removed_and_in_nobodys_way(tmp_path):
    """In a container a process has the same number in every run."""
    own = name_aside(tmp_path / "out")
    dead = own.with_name(own.name.replace(str(os.getpid()), str(dead_process())))
    alive = own.with_name(own.name.replace(str(os.getpid()), "1"))
    others = own.with_name(own.name.replace(".out.", ".out2."))
    for each in (own, dead, alive, others):
        each.mkdir()
        (each / "model.safetensors").write_text("half")
    save(tiny_model("llama"), tmp_path / "out")
    assert {each.name for each in tmp_path.iterdir()} == {"out", alive.name, others.name}
    name_aside(tmp_path / "text").write_text("half")
    write_text(tmp_path / "text", "whole")
    assert (tmp_path / "text").read_text() == "whole"


def dead_process():
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_random_bits_of_a_plan_change_nothing_or_are_refused(tmp_path):
    plan = PrunePlan(
        find_sublayers(tiny_model("llama")).facts(), (PruneStep(Candidate.parse("mlp.1"), 9, 0.1, 2.5, 2.75),)
    )
    whole = plan.save(tmp_path / "plan.json").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        (tmp_path / "plan.json").write_bytes(whole)
        flip(tmp_path / "plan.json", chance.randrange(len(whole)), chance.randrange(8))
        try:
            assert PrunePlan.load(tmp_path / "plan.json") == plan
        except PlanError:
            refused += 1
    assert refused > 250
