"""However a pruned model is saved, what loads it without lit_prune stops: no gap is ever filled at random."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lit_prune.errors import ModelError
from lit_prune.export import export_model
from lit_prune.loading import autoload
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove, set_tombstones_aside
from tests.tiny import tiny_model

REMOVED = [SublayerId.parse(each) for each in ("attention.0", "mlp.1", "attention.2")]
TOKENS = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))


def pruned():
    model = tiny_model("llama")
    remove(model, REMOVED)
    return model


def saved_with_parameters_alone(folder):
    """As trainers do that gather sharded parameters."""
    model = pruned()
    model.save_pretrained(folder, True, dict(model.named_parameters()))


def saved_by_accelerate(folder):
    model = pruned()
    Accelerator(cpu=True).save_model(model, folder)
    model.config.save_pretrained(folder)


def saved_from_its_own_code(folder):
    export_model(pruned(), folder / "first", format="hf-remote-code")
    with autoload.teaching(False):
        model = AutoModelForCausalLM.from_pretrained(folder / "first", trust_remote_code=True)
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(again), logits(model))


def saved_from_disk(folder):
    pruned().save_pretrained(folder / "first")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{number}": "disk" for number in range(4)}
    options = {"device_map": places, "offload_folder": str(folder / "offloaded")}
    AutoModelForCausalLM.from_pretrained(folder / "first", **options).save_pretrained(folder)


def saved_from_shards(folder):
    model = pruned()
    set_tombstones_aside(model)  # as `shard` does
    assert all(each.numel() for each in model.state_dict().values())
    model.save_pretrained(folder)


WAYS = [saved_from_shards, saved_with_parameters_alone, saved_by_accelerate, saved_from_its_own_code, saved_from_disk]


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.filterwarnings("ignore:copying from a non-meta parameter:UserWarning")
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("way", WAYS)
def test_whoever_saves_it(way, tmp_path):
    way(tmp_path)
    dense = tiny_model("llama")
    with mute(dense, REMOVED):
        expected = logits(dense)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-5)
    with autoload.teaching(False), pytest.raises(RuntimeError, match="size"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_what_would_load_as_another_model_is_not_saved(tmp_path):
    model = tiny_model("llama")
    with mute(model, REMOVED), pytest.raises(ModelError, match=r"attention\.0, attention\.2, mlp\.1 are only muted"):
        model.save_pretrained(tmp_path / "muted")
    twin = LlamaForCausalLM(model.config)
    remove(model, REMOVED)
    with pytest.raises(ModelError, match="shares the config with a pruned one"):
        twin.save_pretrained(tmp_path / "twin")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="the model has adapters inside"):
        model.save_pretrained(tmp_path / "adapted")
    wrapped.save_pretrained(tmp_path / "adapter")
    assert not [*tmp_path.glob("*/config.json")]
