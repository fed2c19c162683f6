"""Models whose weights are quantised already: scored, removed, saved and loaded as they are, never quantised anew."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_prune import load, prune
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export import save
from lit_prune.loading import autoload
from lit_prune.surgery import mute
from tests.tiny import tiny_model

TOKENS = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def model():
    return tiny_model("llama", hidden_size=64, intermediate_size=128)


def logits(network):
    with torch.no_grad():
        return network(TOKENS).logits


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_weights_are_counted_removed_and_saved_as_they_are(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model().save_pretrained(tmp_path / "dense")
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})

    def quantised():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=config, device_map="cpu")

    # What bitsandbytes 0.50 runs first in a process is sometimes wrong on a CPU.
    logits(quantised())
    whole, network = quantised(), quantised()
    weights = {name: each.clone() for name, each in network.state_dict().items()}
    plan = prune(network, [{"input_ids": TOKENS}], amount=0.2, progress=False)
    dense = model()
    assert plan.model.num_parameters == sum(each.numel() for each in dense.parameters())
    sizes = {each.id: each.num_parameters for each in find_sublayers(dense).sublayers}
    assert plan.num_removed_parameters == sum(sizes[each] for each in plan.removed)
    with mute(whole, plan.removed):
        assert torch.equal(logits(network), logits(whole))
    save(network, tmp_path / "pruned", plan=plan)
    back = load(tmp_path / "pruned")
    assert torch.equal(logits(back), logits(network))
    for name, each in back.state_dict().items():
        # A forward on the CPU lays the 4-bit scales out anew.
        assert "absmax" in name or not each.numel() or torch.equal(each, weights[name]), name
    with autoload.teaching(False), pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", device_map="cpu")


def test_torchao_weights_are_scored_and_removed_and_a_folder_is_refused(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    whole, network = model(), model()
    for each in (whole, network):
        quantization.quantize_(each, quantization.Int8WeightOnlyConfig())
    plan = prune(network, [{"input_ids": TOKENS}], amount=0.2, progress=False)
    assert plan.num_removed_parameters >= 0.2 * plan.model.num_parameters
    with mute(whole, plan.removed):
        assert torch.equal(logits(network), logits(whole))
    # Quantised behind transformers' back, its config does not tell how to build the layers.
    with pytest.raises((ModelError, RuntimeError)):
        save(network, tmp_path / "pruned", plan=plan)
    assert not (tmp_path / "pruned").exists()
