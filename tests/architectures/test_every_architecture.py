"""What must hold for every architecture. What each test finds is a cell of docs/reference/architectures.md."""

import copy
from contextlib import contextmanager, suppress

import pytest
import torch

from lit_prune.anatomy import CORRECTIONS, cache_of, find_sublayers
from lit_prune.costs import count_costs
from lit_prune.errors import ModelError, PlanError
from lit_prune.export import export_model, save
from lit_prune.export.served import require_served
from lit_prune.export.targets import POSITIONS
from lit_prune.healing import LoraHealing, attach_lora, merge
from lit_prune.loading import autoload
from lit_prune.loading.models import load
from lit_prune.measure import WhatIf
from lit_prune.plan import Candidate, SublayerId
from lit_prune.surgery import compact, mute, remove, removed_sublayers, require_understood
from tests import naive
from tests.architectures.report import capability
from tests.tiny import NUM_BLOCKS, tiny_model
from tests.zoo import ZOO

ALL = [(kind, block) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
ATTENTION = [each for each in ALL if each[0] == "attention"]
SINGLES = [[each] for each in ALL]
PAIRS = [
    [("attention", 0), ("mlp", 0)],
    [("attention", 0), ("attention", 1)],
    [("mlp", 0), ("attention", 3)],
    [("mlp", 2), ("mlp", 3)],
    [("attention", 2), ("mlp", 2)],
]
LARGER = [
    ALL[:4],
    [("attention", 1), ("mlp", 1), ("attention", 3)],
    [each for each in ALL if each[0] == "mlp"],
    ATTENTION,
    ALL[1:],
    ALL,
]
SETS = [*SINGLES, *PAIRS, *LARGER]
# For what is slow: the cache's first and last layers without attention, whole blocks, a mixture and all.
FEWER = [SINGLES[0], SINGLES[-2], *LARGER[:2], ATTENTION, ALL]
TOKENS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(TOKENS)
PADDED[0, :7] = 0


def ids(names):
    return [SublayerId(block, kind) for kind, block in names]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, attention_mask=PADDED, use_cache=False).logits[PADDED.bool()]


def generate(model, **options):
    model.generation_config.eos_token_id = None
    options = {"attention_mask": PADDED, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(TOKENS, **options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@capability("mute")
def test_muted_equals_the_output_zeroed_to_the_last_bit(architecture, finds):
    model = tiny_model(architecture)
    require_understood(model)
    before = logits(model)
    for gone in SETS:
        with naive.zeroed(model, architecture, gone):
            expected = logits(model)
        assert not torch.allclose(expected, before, atol=1e-3), "the reference must change something"
        with mute(model, ids(gone)):
            assert torch.equal(logits(model), expected), gone
    assert torch.equal(logits(model), before)
    finds("exact")


@capability("remove")
def test_removed_equals_the_output_zeroed_and_frees_what_is_its_own(architecture, finds):
    dense, specimen = tiny_model(architecture), ZOO[architecture]
    for gone in SETS:
        model = copy.deepcopy(dense)
        freed = remove(model, ids(gone))
        with naive.zeroed(dense, architecture, gone):
            assert torch.equal(logits(model), logits(dense)), gone
        expected = sum(naive.size(dense, architecture, each) for each in gone)
        for block in {block for _, block in gone if {("attention", block), ("mlp", block)} <= set(gone)}:
            norms = [dense.get_submodule(f"{specimen.blocks}.{block}.{name}") for name in specimen.shared_norms]
            expected += sum(parameter.numel() for norm in norms for parameter in norm.parameters())
        assert freed == count(dense) - count(model) == expected, gone
        assert {(each.kind, each.block) for each in removed_sublayers(model)} == set(gone)
        with pytest.raises(PlanError, match="removed before"):
            remove(model, ids(gone[-1:]))
    assert remove(model, []) == 0
    finds("exact")


@capability("generate")
def test_generation_is_the_same_with_and_without_cache(architecture, finds):
    dense = tiny_model(architecture)
    for gone in FEWER:
        model = copy.deepcopy(dense)
        remove(model, ids(gone))
        assert torch.equal(generate(model), generate(model, use_cache=False)), gone
    finds("exact")


@capability("static cache")
def test_generation_is_the_same_with_a_static_cache(architecture, finds):
    dense = tiny_model(architecture)
    if "static" in ZOO[architecture].wrong_upstream:
        try:
            found = generate(dense, cache_implementation="static", max_new_tokens=40)
        except ValueError:
            found = None
        expected = generate(dense, use_cache=False, max_new_tokens=40)
        assert found is None or not torch.equal(found, expected), "repaired: let it be tested"
        finds("no: the dense model's own fails")
        return
    for gone in [each for each in FEWER if not set(ATTENTION) <= set(each)]:
        model = copy.deepcopy(dense)
        remove(model, ids(gone))
        found = generate(model, cache_implementation="static")
        assert torch.equal(found, generate(model, use_cache=False)), gone
    finds("exact")


@capability("save, load")
def test_saved_and_loaded_it_is_the_same_model(architecture, tmp_path, finds):
    dense = tiny_model(architecture)
    for number, gone in enumerate([LARGER[1], ATTENTION, ALL]):
        model = copy.deepcopy(dense)
        remove(model, ids(gone))
        folder = save(model, tmp_path / str(number))
        with autoload.teaching(False), pytest.raises(RuntimeError, match="mismatched_sizes"):
            type(model).from_pretrained(folder)
        loaded = load(folder)
        assert type(loaded) is type(model)
        assert {(each.kind, each.block) for each in removed_sublayers(loaded)} == set(gone)
        assert count(loaded) == count(model)
        assert torch.equal(logits(loaded), logits(model)), gone
        assert torch.equal(generate(loaded), generate(model)), gone
    finds("exact")


@capability("whole blocks")
def test_whole_blocks_leave_the_stack_where_the_rest_is_a_stock_model(architecture, tmp_path, finds):
    dense = tiny_model(architecture)
    model = copy.deepcopy(dense)
    remove(model, ids(ALL[2:6]))
    expected, tokens = logits(model), generate(model)
    folder = save(model, tmp_path / "model")
    assert len(find_sublayers(model).blocks) == NUM_BLOCKS, "saving leaves the model as it is"
    assert torch.equal(logits(load(folder)), expected)
    compact(model)
    length = len(find_sublayers(model).blocks)
    assert torch.equal(logits(model), expected)
    assert torch.equal(generate(model), tokens)
    assert {(each.kind, each.block) for each in removed_sublayers(model)} == set(ALL[2:6])
    assert find_sublayers(load(folder)).blocks == find_sublayers(model).blocks
    remove(model, ids([("mlp", 3)]))
    with naive.zeroed(dense, architecture, [*ALL[2:6], ("mlp", 3)]):
        assert torch.equal(logits(model), logits(dense)), "addresses are those of the original model"
    if length == NUM_BLOCKS:
        finds("pass through")
        return
    assert length == 2
    assert f"{type(model).__name__}.from_pretrained" in (folder / "README.md").read_text()
    stock = type(model).from_pretrained(folder)
    plain = set(dense.config.get_text_config().to_dict())
    assert set(stock.config.get_text_config().to_dict()) - plain == {"lit_prune"}
    assert stock.config.get_text_config().num_hidden_layers == 2
    assert torch.equal(logits(stock), expected)
    assert torch.equal(generate(stock), tokens)
    finds("stock model")


@capability("LoRA")
def test_adapters_are_attached_dropped_with_their_sublayer_and_merged(architecture, finds):
    model = tiny_model(architecture)
    names = set(model.state_dict())
    expected = logits(model)
    attach_lora(model, LoraHealing(rank=2))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert find_sublayers(model).num_parameters == count(tiny_model(architecture))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    remove(model, ids([("attention", 1), ("mlp", 2)]))
    adapted, left = logits(model), find_sublayers(model).sublayers
    linear = [each for each in left if not each.num_idle_parameters]
    assert all(any("lora_" in name for name, _ in model.get_submodule(each.path).named_parameters()) for each in linear)
    assert not any(f".{block}." in name and "lora" in name and part in name for name, _ in model.named_parameters()
                   for block, part in ((1, ZOO[architecture].attention), (2, ZOO[architecture].mlp)))  # fmt: skip
    model(input_ids=TOKENS, attention_mask=PADDED, labels=TOKENS).loss.backward()
    assert any(each.grad is not None and each.grad.abs().sum() > 0 for name, each in model.named_parameters()
               if "lora_" in name)  # fmt: skip
    merge(model)
    torch.testing.assert_close(logits(model), adapted, atol=1e-3, rtol=1e-3)
    assert set(model.state_dict()) == names
    finds("not the experts" if any("mlp" in each.id.kind and each.num_idle_parameters for each in left) else "yes")


@capability("scoring")
def test_losses_without_a_sublayer_are_those_of_the_naive_way(architecture, finds):
    model = tiny_model(architecture)
    batches = [{"input_ids": TOKENS}]
    remove(model, ids([("attention", 1)]))
    dense = tiny_model(architecture)
    asked = [each for each in ALL if each != ("attention", 1)]
    losses = WhatIf(model, batches).losses([Candidate(tuple(ids([each]))) for each in asked])
    for each in asked:
        with naive.zeroed(dense, architecture, [("attention", 1), each]):
            expected = naive.mean_loss(dense, batches)
        assert losses.without[Candidate(tuple(ids([each])))] == pytest.approx(expected, rel=1e-5), each
    finds("exact")


@capability("costs")
def test_costs_are_counted_without_weights(architecture, finds):
    model = tiny_model(architecture)
    costs = count_costs(model, 12)
    model.generation_config.eos_token_id = None
    output = model(input_ids=TOKENS[:, :12], use_cache=True)
    for block, layer in enumerate(cache_of(output).layers):
        numbers = (layer.keys.numel() + layer.values.numel()) / layer.keys.shape[0] / layer.keys.shape[-2]
        assert costs.kv_elements[SublayerId(block, "attention")] == numbers
    anatomy = find_sublayers(model)
    for each in anatomy.sublayers:
        if ZOO[architecture].latent and each.id.kind == "attention":
            continue
        # Two for every weight of a matrix that a token meets, and for attention twice that for every key and value.
        active = 2 * (each.num_parameters - each.num_idle_parameters)
        keys = 4 * 13 * 32 if each.id.kind == "attention" else 0
        assert costs.flops[each.id] == pytest.approx(active + keys, rel=0.2), each.id
    assert sum(costs.flops.values()) < costs.total_flops
    finds("yes")


@capability("residual form")
def test_the_form_is_the_one_that_the_modelling_code_has(architecture, finds):
    sublayers = find_sublayers(tiny_model(architecture)).sublayers
    assert {each.form for each in sublayers} == {ZOO[architecture].form}
    for each in sublayers:
        assert (each.residual is not None) == (each.id.kind in ZOO[architecture].inside)
    inside = ", adds the residual itself" if ZOO[architecture].inside else ""
    finds(ZOO[architecture].form + inside)


@capability("foldable")
def test_a_factor_on_the_residual_stream_is_lost_in_norms_where_it_can_be_folded(architecture, finds):
    model = tiny_model(architecture)
    sublayers = find_sublayers(model).sublayers
    corrections = CORRECTIONS[ZOO[architecture].form]
    # Large enough for the norms' epsilon to be nothing beside the stream, small enough for the activations to bend.
    with scaled_stream(model, sublayers, 4):
        expected = logits(model)
    with scaled_stream(model, sublayers, 6):
        found = logits(model)
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3) == ("scale" in corrections)
    finds(", ".join(corrections) or "nothing")


@contextmanager
def scaled_stream(model, sublayers, factor):
    """Everything that is written into the residual stream is multiplied by a factor."""

    def scale(sublayer):
        def hook(_, args, output):
            tensor = output[0] if isinstance(output, tuple) else output
            residual = args[1] if sublayer.residual else torch.zeros_like(tensor)
            scaled = residual + factor * (tensor - residual)
            return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

        return hook

    handles = [model.get_submodule(each.output).register_forward_hook(scale(each)) for each in sublayers]
    first = model.get_submodule(f"{find_sublayers(model).blocks_path}.0")
    handles.append(
        first.register_forward_pre_hook(
            lambda _, args, kwargs: ((factor * args[0], *args[1:]), kwargs), with_kwargs=True
        )
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def runtimes_of(model, folder):
    """Names of the runtimes whose formats take a pruned model; those of folders write it, and read it back."""
    found = []
    for name, format in (("vLLM", "vllm"), ("mlx-lm", "mlx")):
        with suppress(ModelError):
            export_model(model, folder / format, format=format)
            found.append(name)
    with suppress(ModelError):  # a file would need a tokenizer with merges
        require_served(model, "llama.cpp's deci", POSITIONS)
        found.append("llama.cpp")
    return found


@capability("runtimes")
def test_formats_of_runtimes_take_it_or_refuse_it_by_name(architecture, finds, tmp_path):
    model = tiny_model(architecture)
    remove(model, ids(FEWER[3]))
    finds(", ".join(runtimes_of(model, tmp_path)) or "none")
