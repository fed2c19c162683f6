"""Models that no device holds, and weights that go straight to one: by accelerate, with disk for a second device."""

import pytest
import torch
from transformers import PreTrainedModel

from lit_prune import load, prune
from lit_prune.errors import ModelError
from lit_prune.export import save
from lit_prune.measure import weights_fingerprint
from lit_prune.placement import is_spread
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
    assert weights_fingerprint(spread) == weights_fingerprint(whole)
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


def test_weights_go_straight_to_a_device(folder, monkeypatch):
    told = {}
    original = PreTrainedModel.from_pretrained.__func__

    def spy(cls, *arguments, **options):
        told.update(options)
        return original(cls, *arguments, **{**options, "device_map": {"": "cpu"}})

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(spy))
    load(folder, device="cuda:1", dtype="bfloat16")
    assert told["device_map"] == {"": torch.device("cuda:1")}
    assert told["dtype"] is torch.bfloat16


def test_a_device_and_a_map_are_refused(folder):
    with pytest.raises(ModelError, match="give one of them"):
        load(folder, device="cpu", device_map="auto")
