"""Sublayers that are built again for a checkpoint that has them: held against a model that never lost them."""

import pytest
import torch

from lit_prune.anatomy import find_sublayers
from lit_prune.plan import SublayerId
from lit_prune.surgery import put_back, remove
from tests.tiny import tiny_model
from tests.zoo import ZOO

TOKENS = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
BACK = {SublayerId.parse(each) for each in ("attention.0", "attention.1", "mlp.1")}


@pytest.mark.parametrize("architecture", ZOO)
def test_what_was_removed_is_built_again_for_weights_that_are_loaded(architecture):
    model, expected = tiny_model(architecture), tiny_model(architecture)
    every = [each.id for each in find_sublayers(model).sublayers]
    remove(model, every)
    put_back(model, BACK)
    remove(expected, [each for each in every if each not in BACK])
    model.load_state_dict(expected.state_dict())
    with torch.no_grad():
        found, wanted = (each(input_ids=TOKENS, use_cache=False).logits for each in (model, expected))
        assert torch.equal(found, wanted)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(TOKENS, **options), expected.generate(TOKENS, **options))
