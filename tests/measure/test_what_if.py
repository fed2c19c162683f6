import pytest
import torch

from lit_prune.errors import DataError, LitPruneError, MeasureError
from lit_prune.measure import WhatIf, sequence_losses
from lit_prune.plan import Candidate
from lit_prune.surgery import remove
from tests import naive
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (size, 20), generator=GENERATOR)} for size in (3, 2)]
NAMES = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for kind, block in NAMES]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_equal_a_full_forward_with_one_output_zeroed(architecture):
    model = tiny_model(architecture)
    losses = WhatIf(model, BATCHES).losses(CANDIDATES)
    assert losses.base == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-6)
    for name, candidate in zip(NAMES, CANDIDATES, strict=True):
        with naive.zeroed(model, architecture, [name]):
            assert losses.without[candidate] == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forks_that_share_a_suffix_lose_what_they_lose_alone(architecture):
    model = tiny_model(architecture)
    calls = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    alone = WhatIf(model, BATCHES)
    expected = alone.losses(CANDIDATES)
    num_alone = len(calls)
    together = WhatIf(model, BATCHES, forks=3)
    found = together.losses(CANDIDATES)
    hook.remove()
    assert found.without == pytest.approx(expected.without, abs=1e-6)
    for each in CANDIDATES:
        torch.testing.assert_close(found.sequences[each], expected.sequences[each], rtol=1e-6, atol=1e-4)
    assert together.num_block_evaluations == alone.num_block_evaluations
    assert together.num_head_evaluations == alone.num_head_evaluations
    # The last group reaches the last block, behind which there is nothing to share.
    groups = -(-len(CANDIDATES) // 3)
    assert len(calls) - num_alone <= len(BATCHES) * (1 + groups + 2)


def test_forks_do_not_go_with_offload():
    with pytest.raises(LitPruneError, match="1 with offload; found 2"):
        WhatIf(tiny_model("llama"), BATCHES, forks=2, offload=True)


def test_whole_blocks_on_a_pruned_model_and_sequences_add_up():
    model = tiny_model("llama")
    remove(model, CANDIDATES[2].sublayers)
    block = Candidate.parse("block.2")
    losses = WhatIf(model, BATCHES).losses([block, CANDIDATES[7]])
    with naive.zeroed(model, "llama", [("attention", 2), ("mlp", 2)]):
        assert losses.without[block] == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)
    assert losses.sequences[block].shape == (5,)
    assert losses.sequences[block].sum().item() / losses.num_tokens == pytest.approx(losses.without[block])


def test_a_set_of_sublayers_goes_together():
    model = tiny_model("llama")
    names = ["block.1+mlp.3", "attention.0+attention.3", "+".join(f"block.{number}" for number in range(NUM_BLOCKS))]
    candidates = [Candidate.parse(name) for name in names]
    assert [each.name for each in candidates] == names
    losses = WhatIf(model, BATCHES).losses(candidates)
    for candidate in candidates:
        with naive.zeroed(model, "llama", [(each.kind, each.block) for each in candidate.sublayers]):
            assert losses.without[candidate] == pytest.approx(naive.mean_loss(model, BATCHES), abs=1e-5)


def test_the_count_of_block_evaluations_is_what_really_ran():
    model = tiny_model("llama")
    ran = []
    for layer in model.model.layers:
        # A carried state never reaches the block's own parts.
        layer.mlp.register_forward_hook(lambda *_: ran.append("mlp"))
    what_if = WhatIf(model, BATCHES)
    what_if.losses(CANDIDATES)
    naive_count = len(BATCHES) * NUM_BLOCKS * (1 + len(CANDIDATES))
    muted_mlps = len(BATCHES) * NUM_BLOCKS
    assert len(ran) + muted_mlps == what_if.num_block_evaluations
    assert what_if.num_block_evaluations == len(BATCHES) * (NUM_BLOCKS + 2 * sum(range(1, NUM_BLOCKS + 1)))
    assert what_if.cost == what_if.num_block_evaluations / (len(BATCHES) * NUM_BLOCKS)
    assert what_if.num_block_evaluations < naive_count


def test_thirty_blocks_need_at_most_055_of_the_naive_evaluations():
    model = tiny_model("llama", num_hidden_layers=30)
    calls = [0]
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    candidates = [Candidate.parse(f"{kind}.{block}") for block in range(30) for kind in ("attention", "mlp")]
    what_if = WhatIf(model, BATCHES[:1])
    what_if.losses(candidates)
    # A muted mlp's norm is out too: thirty calls that the hook cannot see.
    assert calls[0] + 30 == what_if.num_block_evaluations
    assert what_if.num_block_evaluations <= 0.55 * 30 * len(candidates)


def test_padding_and_masked_labels_do_not_count():
    model = tiny_model("llama")
    short = BATCHES[1]["input_ids"]
    padded = torch.cat([short, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones_like(short), torch.zeros(2, 5, dtype=torch.long)], dim=1)
    plain = WhatIf(model, [BATCHES[1]]).losses(CANDIDATES[:2])
    masked = WhatIf(model, [{"input_ids": padded, "attention_mask": mask}]).losses(CANDIDATES[:2])
    assert masked.num_tokens == plain.num_tokens
    assert masked.base == pytest.approx(plain.base, abs=1e-6)
    assert masked.without[CANDIDATES[1]] == pytest.approx(plain.without[CANDIDATES[1]], abs=1e-6)


def test_modes_and_methods_are_as_before():
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    WhatIf(model, BATCHES).losses(CANDIDATES)
    assert [module.training for module in model.modules()] == modes
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_bfloat16_losses_are_summed_in_float32():
    logits = torch.full((1, 1001, 2), 100.0, dtype=torch.bfloat16)
    nll, tokens = sequence_losses(logits, torch.zeros(1, 1001, dtype=torch.long))
    assert tokens.item() == 1000
    assert nll.item() == pytest.approx(1000 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration batches"),
        ([{"tokens": torch.zeros(1, 4)}], r"keys \['tokens'\]"),
        ([torch.zeros(1, 4)], "a Tensor"),
        ([{"input_ids": torch.zeros(4, dtype=torch.long)}], r"must be a tensor \[batch, seq\]; found \[4\]"),
        ([{"input_ids": [[1, 2]]}], "found a list"),
        ([{"input_ids": torch.ones(1, 4)}], "whole numbers; found torch.float32"),
        ([({"input_ids": torch.ones(1, 4)}, "name")], "a tuple"),
        ([{"inputs": {"input_ids": torch.ones(1, 4, dtype=torch.long)}}], r"keys \['inputs'\]"),
        ([{"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2)}], r"\[2, 4\]; found \[2\]"),
        ([{"input_ids": torch.ones(1, 4, dtype=torch.long), "labels": torch.full((1, 4), -100)}], "masked"),
        ([{"input_ids": torch.ones(1, 4, dtype=torch.long), "inputs_embeds": torch.ones(1, 4, 32)}], "stand for"),
        ([{"input_ids": torch.ones(1, 200, dtype=torch.long)}], "200 tokens.* 128"),
    ],
)
def test_unusable_batches_are_refused(batches, message):
    with pytest.raises(DataError, match=message):
        WhatIf(tiny_model("llama"), batches)


def test_a_forward_of_somebody_else_comes_back():
    model = tiny_model("llama")
    layer = model.model.layers[0]
    mine = layer.forward
    layer.forward = mine
    WhatIf(model, BATCHES).losses(CANDIDATES)
    assert layer.__dict__["forward"] is mine


def test_nan_is_refused_by_name():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(MeasureError, match="without nothing is nan"):
        WhatIf(model, BATCHES).losses(CANDIDATES)
