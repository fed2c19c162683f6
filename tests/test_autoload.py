"""Loaders that know nothing of lit_prune build pruned models once it is imported, in whatever order."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    LlamaModel,
    pipeline,
)

from lit_prune import autoload
from lit_prune.errors import AnatomyError
from lit_prune.export import save
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove
from tests.tiny import character_tokenizer, tiny_model

REMOVED = [SublayerId.parse(each) for each in ("attention.0", "mlp.1", "attention.2")]
TOKENS = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model("llama")
    remove(model, REMOVED)
    return save(model, tmp_path_factory.mktemp("models") / "pruned", tokenizer=character_tokenizer())


@pytest.fixture(scope="module")
def expected():
    model = tiny_model("llama")
    with mute(model, REMOVED):
        return logits(model)


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, LlamaForCausalLM])
def test_causal_models(loader, folder, expected):
    model = loader.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_other_heads_and_none(folder):
    body = AutoModel.from_pretrained(folder)
    assert type(body) is LlamaModel
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    ours = {name for name, _ in LlamaForCausalLM.from_pretrained(folder).model.named_parameters()}
    assert {name for name, _ in body.named_parameters()} == ours
    assert {name for name, _ in classifier.model.named_parameters()} == ours


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_a_pipeline_and_an_adapter(folder, expected, tmp_path):
    assert pipeline("text-generation", str(folder)).model.num_parameters() < tiny_model("llama").num_parameters()
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules="all-linear"))
    adapted.save_pretrained(tmp_path)
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-5)


def test_loading_information_comes_along(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is LlamaForCausalLM
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))


def test_elsewhere_it_is_not_known(folder):
    with autoload.uninstalled():
        elsewhere = AutoModelForCausalLM.from_pretrained(folder)
    assert elsewhere.num_parameters() == tiny_model("llama").num_parameters()
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() < elsewhere.num_parameters()


def test_a_damaged_record_is_told(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "damaged/config.json").write_text(json.dumps({**config, "lit_prune": ["attention.0"]}))
    with pytest.raises(AnatomyError, match="newer lit-prune"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "damaged")


def test_a_dense_model_is_left_alone(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("order", ["import lit_prune, transformers", "import transformers.modeling_utils, lit_prune"])
def test_the_order_of_imports_is_of_no_matter(order, folder):
    program = f"""
{order}
model = transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})
print(model.num_parameters())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_importing_is_light():
    program = "import lit_prune, sys; print('torch' in sys.modules or 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
