"""What muting and removing do to a model, its optimizer and config; tests/architectures proves both exact."""

import itertools
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from lit_prune.anatomy import find_sublayers
from lit_prune.errors import PlanError
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove, removed_sublayers
from tests import naive
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, tiny_model

SINGLES = [((kind, block),) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
PAIRS = [
    (("attention", 0), ("mlp", 0)),
    (("attention", 0), ("attention", 1)),
    (("mlp", 0), ("attention", 3)),
    (("mlp", 2), ("mlp", 3)),
]
TOKENS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(TOKENS)
PADDED[0, :7] = 0


def ids(names):
    return [SublayerId(block, kind) for kind, block in names]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, attention_mask=PADDED).logits[PADDED.bool()]


def test_mute_restores_after_an_exception_and_nests():
    model = tiny_model("llama")
    before, config = dict(model.named_modules()), model.config.to_dict()
    with pytest.raises(RuntimeError, match="stop"), mute(model, ids(SINGLES[0])), mute(model, ids(SINGLES[3])):
        raise RuntimeError("stop")
    assert dict(model.named_modules()) == before
    assert model.config.to_dict() == config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_removal_frees_parameters_and_their_optimizer_state(architecture):
    model = tiny_model(architecture)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    count = sum(each.numel() for each in model.parameters())
    kept = {each: optimizer.state[each]["exp_avg"].clone() for each in model.parameters()}
    gone = [("attention", 1), ("mlp", 2)]
    freed = remove(model, ids(gone), [optimizer])
    left = list(model.parameters())
    assert freed == sum(
        naive_size for naive_size in (naive.size(tiny_model(architecture), architecture, g) for g in gone)
    )
    assert sum(each.numel() for each in left) == count - freed
    assert {id(each) for each in optimizer.param_groups[0]["params"]} == {id(each) for each in left}
    assert {id(each) for each in optimizer.state} == {id(each) for each in left}
    assert all(torch.equal(optimizer.state[each]["exp_avg"], kept[each]) for each in left)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()


def test_removal_in_steps_is_recorded_and_never_twice():
    model = tiny_model("llama")
    for name in itertools.chain(SINGLES[:3]):
        remove(model, ids(name))
    assert [str(each) for each in removed_sublayers(model)] == ["attention.0", "mlp.0", "attention.1"]
    assert model.config.lit_prune["removed"] == ["attention.0", "mlp.0", "attention.1"]
    assert json.loads(model.config.to_json_string())["per_layer_config"] == {
        "0": {"skip": ["attention", "mlp"]},
        "1": {"skip": ["attention"]},
    }
    with pytest.raises(PlanError, match="removed before"):
        remove(model, ids([("mlp", 3), ("mlp", 0)]))
    assert len(removed_sublayers(model)) == 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "phi", "mixtral"])
def test_a_model_wrapped_by_peft_is_the_model_inside(architecture):
    model = tiny_model(architecture)
    with naive.zeroed(model, architecture, PAIRS[0]):
        expected = logits(model)
    target = naive.module_of(model, architecture, ("attention", 1))
    linear = next(name for name, each in target.named_modules() if isinstance(each, torch.nn.Linear | Conv1D))
    wrapped = get_peft_model(model, LoraConfig(target_modules=[linear], fan_in_fan_out=architecture == "gpt2"))
    before = sum(each.numel() for each in model.parameters())
    with mute(wrapped, ids(PAIRS[0])):
        assert torch.equal(logits(wrapped), expected)
    gone = [each for name, each in wrapped.named_parameters() if ".0." in name and "lora_" in name]
    freed = remove(wrapped, ids(PAIRS[0]))
    assert torch.equal(logits(wrapped), expected)
    assert before - freed - sum(each.numel() for each in gone) == sum(each.numel() for each in model.parameters())
    assert len(removed_sublayers(wrapped)) == 2


def test_images_go_through_a_pruned_model():
    model = tiny_model("llava (llama)")
    tokens = torch.cat([TOKENS[:1, :8], torch.full((1, 4), 120), TOKENS[:1, 8:16]], dim=1)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def seen():
        with torch.no_grad():
            return model(input_ids=tokens, pixel_values=image).logits

    with naive.zeroed(model, "llava (llama)", PAIRS[2]):
        expected = seen()
    remove(model, ids(PAIRS[2]))
    assert torch.equal(seen(), expected)
    image.zero_()
    assert not torch.equal(seen(), expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_attention_weights_are_those_of_what_is_left(architecture):
    model = tiny_model(architecture, attn_implementation="eager")
    remove(model, ids((("attention", 1), ("mlp", 2))))
    seen = []
    for block in (0, 2, 3):
        module = naive.module_of(model, architecture, ("attention", block))
        module.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    with torch.no_grad():
        found = model(input_ids=TOKENS, output_attentions=True, output_hidden_states=True)
    assert len(found.hidden_states) == 1 + 4
    assert [torch.equal(*each) for each in zip(found.attentions, seen, strict=True)] == [True] * 3


def one_ffn(model):
    for block in model.model.layers:
        block.mlp = model.model.layers[0].mlp


def one_memory(model):
    for block in model.model.layers:
        for own, first in zip(block.mlp.parameters(), model.model.layers[0].mlp.parameters(), strict=True):
            own.data = first.data


def two_projections(model):
    """Of one layer, in two others."""
    for block in model.model.layers[2:]:
        block.mlp.down_proj = model.model.layers[1].mlp.down_proj


@pytest.mark.parametrize("share", [one_ffn, one_memory, two_projections])
def test_parameters_that_layers_share_are_freed_when_the_last_place_is_gone(share):
    model = tiny_model("llama")
    share(model)

    def held():
        return sum({each.data_ptr(): each.numel() for each in model.parameters()}.values())

    anatomy = find_sublayers(model)
    assert anatomy.num_parameters == held()
    everything = anatomy.num_freed([each.id for each in anatomy.sublayers])
    total = 0
    for block in (2, 0, 3, 1):
        before, said = held(), find_sublayers(model).num_freed([SublayerId(block, "mlp")])
        assert remove(model, [SublayerId(block, "mlp")]) == said == before - held()
        total += said
    attention = [SublayerId(block, "attention") for block in range(4)]
    assert total + remove(model, attention) == everything
