"""Which blocks could leave the stack: what `compact` does to each alone, and nothing is changed by asking."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_prune.anatomy import find_sublayers
from lit_prune.plan import Candidate, SublayerId
from lit_prune.surgery import closable_blocks, compact, remove
from tests.tiny import tiny_model
from tests.zoo import SIZES

MODELS = ("llama", "gemma2", "opt", "opt, post-norm", "gpt2", "bloom", "falcon 7B", "qwen2_moe", "llama4", "gpt_oss")


def by_trying(model):
    """The blocks that `compact` takes out of a copy that has lost them, where nothing else is missing then."""
    found = []
    for block in find_sublayers(model).blocks:
        trial = copy.deepcopy(model)
        remove(trial, [each.id for each in find_sublayers(trial).sublayers if each.id.block == block])
        compact(trial)
        anatomy = find_sublayers(trial)
        if block not in anatomy.blocks and len(anatomy.sublayers) == 2 * len(anatomy.blocks):
            found.append(block)
    return tuple(found)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("removed", [(), ("attention.1",), ("attention.1", "mlp.1")])
def test_it_is_what_compact_would_do_to_each(architecture, removed):
    model = tiny_model(architecture)
    remove(model, [SublayerId.parse(each) for each in removed])
    modules, config = dict(model.named_modules()), model.config.to_dict()
    assert closable_blocks(model) == by_trying(model)
    assert model.config.to_dict() == config
    assert all(after is modules[name] for name, after in model.named_modules())


def with_parameters():
    """Residual weights of its own, on the stream's way."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **SIZES, vocab_size=128, pad_token_id=1))
    for each in model.model.layers:
        torch.nn.init.constant_(each.input_residual, 0.7)
    return model.eval()


def with_an_operation(change):
    """Something done to the stream, without any parameter."""
    model = tiny_model("llama")
    block = model.model.layers[1]
    forward = block.forward
    block.forward = lambda hidden_states, *args, **kwargs: forward(change(hidden_states), *args, **kwargs)
    return model


OWN = {
    "parameters": with_parameters,
    "a factor": lambda: with_an_operation(lambda hidden: 0.9 * hidden),
    "a limit that small states do not meet": lambda: with_an_operation(lambda hidden: hidden.clamp(-7, 7)),
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_a_block_that_does_something_of_its_own_stays(make):
    model = make()
    tokens = torch.arange(3, 15)[None]

    @torch.no_grad()
    def logits():
        return model(input_ids=tokens, use_cache=False).logits

    assert 1 not in closable_blocks(model)
    remove(model, Candidate.parse("block.1").sublayers)
    expected = logits()
    compact(model)
    assert len(model.model.layers) == 4
    assert torch.equal(logits(), expected)
    remove(model, Candidate.parse("block.2").sublayers)
    expected = logits()
    compact(model)
    assert (find_sublayers(model).blocks == (0, 1, 3)) == (make is not with_parameters), "others leave the list"
    assert torch.equal(logits(), expected)


def test_without_values_parameters_tell():
    with torch.device("meta"):
        assert closable_blocks(with_parameters()) == ()
