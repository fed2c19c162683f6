"""Models that no device holds, and weights that go straight to one: by accelerate, with disk for a second device."""

import pytest
import torch
from transformers import PreTrainedModel

from lit_prune import LitCausalLM, load, prune
from lit_prune.errors import ModelError
from lit_prune.export import save
from lit_prune.loading import devices
from lit_prune.loading.devices import faster_on_cpu, is_spread, require_device
from lit_prune.loading.models import weights_dtype
from lit_prune.measure import model_fingerprints
from tests.tiny import tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(1))} for _ in range(2)]
REST = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0", "model.layers.1")
DEVICE_MAP = {**dict.fromkeys(REST, "cpu"), "model.layers.2": "disk", "model.layers.3": "disk"}


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_a_model_that_is_partly_on_disk_is_pruned_and_saved_as_one_in_memory(tmp_path, folder):
    spread, whole = load(folder, device_map=DEVICE_MAP), load(folder)
    assert {each.device.type for each in spread.model.layers[3].parameters()} == {"meta"}
    assert is_spread(spread)
    assert not is_spread(whole)
    assert model_fingerprints(spread) == model_fingerprints(whole)
    plans = [prune(each, BATCHES, amount=0.4, progress=False) for each in (spread, whole)]
    assert plans[0] == plans[1]
    assert {each.block for each in plans[0].removed} & {2, 3}, "something of what is on disk went"
    saved = load(save(spread, tmp_path / "out", plan=plans[0]))
    with torch.no_grad():
        assert torch.equal(saved(BATCHES[0]["input_ids"]).logits, whole(BATCHES[0]["input_ids"]).logits)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_what_is_written_wrong_of_a_spread_model_is_noticed(tmp_path, folder, monkeypatch):
    original = PreTrainedModel.save_pretrained

    def damaged(self, path, **options):
        other = load(folder)
        with torch.no_grad():
            other.model.layers[3].mlp.up_proj.weight[0, 0] += 1
        original(other, path, **options)

    spread = load(folder, device_map=DEVICE_MAP)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaged)
    with pytest.raises(ModelError, match=r"layers.3.mlp.up_proj.weight has other values"):
        save(spread, tmp_path / "out")


def pretend_gpus(monkeypatch, number):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda") if number else None)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: number)


@pytest.mark.parametrize(
    ("number", "device"),
    [(0, "cpu"), (0, "meta"), (0, torch.device("cpu")), (1, "cuda"), (2, "cuda:1"), (2, torch.device("cuda", 0))],
)
def test_a_device_that_is_there(monkeypatch, number, device):
    pretend_gpus(monkeypatch, number)
    require_device(device)


@pytest.mark.parametrize(
    ("number", "device", "told"),
    [
        (0, "cuda", "finds no device cuda here, only cpu"),
        (2, "cuda:2", "finds no device cuda:2 here, only cpu, cuda:0, cuda:1"),
        (1, "xpu", "finds no device xpu here, only cpu, cuda:0"),
        (0, "gpu", "'gpu' is no device of PyTorch; here there are cpu"),
        (0, "cuda:", "'cuda:' is no device of PyTorch"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(monkeypatch, folder, number, device, told):
    pretend_gpus(monkeypatch, number)
    (folder / "config.json").write_text("not read")
    with pytest.raises(ModelError, match=told):
        load(folder, device=device)


def test_weights_go_straight_to_a_device(folder, monkeypatch):
    told = {}
    original = PreTrainedModel.from_pretrained.__func__

    def spy(cls, *arguments, **options):
        told.update(options)
        return original(cls, *arguments, **{**options, "device_map": {"": "cpu"}})

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(spy))
    pretend_gpus(monkeypatch, 2)
    load(folder, device="cuda:1", dtype="bfloat16")
    assert told["device_map"] == {"": torch.device("cuda:1")}
    assert told["dtype"] is torch.bfloat16


def test_a_device_and_a_map_are_refused(folder):
    with pytest.raises(ModelError, match="give one of them"):
        load(folder, device="cpu", device_map="auto")


@pytest.mark.parametrize(
    ("dtype", "seconds", "found"),
    [
        ("float32", {"float32": 6.0, "bfloat16": 2.0}, (torch.bfloat16, 3.0)),
        ("bfloat16", {"float32": 2.0, "bfloat16": 80.0}, (torch.float32, 40.0)),
        ("float16", {"float32": 2.0, "bfloat16": 1.0, "float16": 90.0}, (torch.bfloat16, 90.0)),
        ("float32", {"float32": 1.2, "bfloat16": 1.0}, None),
    ],
)
def test_the_data_type_that_a_cpu_is_fast_in(monkeypatch, dtype, seconds, found):
    monkeypatch.setattr(devices, "_seconds_of_a_product", lambda each: seconds[str(each).removeprefix("torch.")])
    assert faster_on_cpu(getattr(torch, dtype)) == found
    monkeypatch.undo()
    assert devices._seconds_of_a_product(torch.float32) > 0


@pytest.mark.parametrize(("seconds", "here"), [((6.0, 2.0), "bfloat16"), ((2.0, 80.0), "float32")])
def test_the_fastest_is_what_the_device_is_fast_in(monkeypatch, folder, seconds, here):
    monkeypatch.setattr(devices, "_seconds_of_a_product", lambda each: seconds[each is torch.bfloat16])
    module = LitCausalLM(str(folder), dtype="fastest")
    assert module.model.dtype is getattr(torch, here)
    assert module.hparams["dtype"] == here, "a checkpoint goes on in it elsewhere"
    assert weights_dtype("fastest", "cpu") is getattr(torch, here)
    assert weights_dtype("fastest", "cuda:0") is torch.bfloat16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert weights_dtype("fastest") is torch.bfloat16
