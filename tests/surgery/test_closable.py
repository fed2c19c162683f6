"""Which blocks could leave the stack: what `compact` does to each alone, and nothing is changed by asking."""

import copy

import pytest

from lit_prune.anatomy import find_sublayers
from lit_prune.plan import SublayerId
from lit_prune.surgery import closable_blocks, compact, remove
from tests.tiny import tiny_model

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
