"""Adapters in models of half precision: as wide as peft keeps its own, and what they add is exact."""

import copy

import lightning as L
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lit_prune import LoraHealing
from lit_prune.healing import HealingSettings, attach_lora, heal
from tests.tiny import tiny_model

TOKENS = torch.randint(3, 128, (4, 20), generator=torch.Generator().manual_seed(1))


class Look(L.Callback):
    """What adapters begin with."""

    def on_train_start(self, trainer, pl_module):
        self.first = {name: each.clone() for name, each in pl_module.model.named_parameters()}


CASTS = {
    "half": nn.Module.half,
    "bfloat16": nn.Module.bfloat16,
    "to": lambda model: model.to("cpu", torch.bfloat16),
    "a copy": lambda model: copy.deepcopy(model).bfloat16(),
    "double": nn.Module.double,
}


def dtypes(model):
    return {name.split(".layers.")[1]: each.dtype for name, each in model.named_parameters() if "lora_" in name}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("name", CASTS)
def test_a_cast_of_the_model_leaves_adapters_as_peft_makes_them(name):
    model = tiny_model("llama")
    attach_lora(model, LoraHealing(rank=2))
    cast = CASTS[name](model)
    wrapped = get_peft_model(CASTS[name](tiny_model("llama")), LoraConfig(r=2, target_modules="all-linear"))
    expected = dtypes(wrapped)
    if name == "double":  # peft makes them of float32 behind the cast
        expected = dict.fromkeys(expected, torch.float64)
    assert dtypes(cast) == expected
    projection = cast.model.layers[1].mlp.down_proj
    with torch.no_grad():
        projection.lora_B["default"].weight.normal_()
        x = torch.randn(5, projection.in_features, dtype=projection.base_layer.weight.dtype)
        base, down, up = (
            each.weight.double()
            for each in (projection.base_layer, projection.lora_A["default"], projection.lora_B["default"])
        )
        expected = x.double() @ (base + 2 * up @ down).T
        assert (projection(x).double() - expected).norm() < 1e-2 * expected.norm()


def test_a_healing_in_half_precision_moves_every_weight():
    model = tiny_model("llama").bfloat16()
    settings = HealingSettings(tokens=20 * 20, learning_rate=1e-4, lr_schedule="constant", warmup=0, validations=1)
    look = Look()
    heal(model, TOKENS, TOKENS, lora=LoraHealing(rank=2), settings=settings, batch_size=1, progress=False,
         accelerator="cpu", precision="bf16-true", callbacks=[look])  # fmt: skip
    trained = {name: each for name, each in model.named_parameters() if "lora_A" in name}
    assert {each.dtype for each in trained.values()} == {torch.float32}
    assert all((each != look.first[name]).all() for name, each in trained.items())
