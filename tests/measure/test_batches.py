"""All that a model is given in training reaches the scoring, whole and in parts: held against transformers' loss."""

from collections import UserDict

import pytest
import torch
from transformers import BatchEncoding

from lit_prune.errors import DataError, MeasureError
from lit_prune.loading.processes import Processes
from lit_prune.measure import WhatIf, model_inputs, read_batches, shares_of
from lit_prune.plan import Candidate
from lit_prune.surgery import mute
from tests import naive
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 110, (4, 12), generator=GENERATOR)
CANDIDATES = [Candidate.parse(each) for each in ("mlp.0", "attention.1", "mlp.1", "block.2")]
SEEN = IDS[:2].clone()
SEEN[0, 1:9], SEEN[1, 3:7] = 120, 120  # two images in the first sequence, one in the second
IMAGES = {"input_ids": SEEN, "pixel_values": torch.randn(3, 3, 16, 16, generator=GENERATOR)}
STARTS = (3, 5, 6, 9)
PACKED = torch.stack([torch.cat([torch.arange(each), torch.arange(12 - each)]) for each in STARTS])
INPUTS = {
    "images": ("llava (llama)", IMAGES),
    "positions of three axes": (
        "qwen2.5-vl (qwen2)",
        {"input_ids": IDS, "position_ids": torch.rand(3, 4, 12, generator=GENERATOR).argsort()},
    ),
    "positions of packed texts": ("llama", {"input_ids": IDS, "position_ids": PACKED}),
    "positions without a batch": ("llama", {"input_ids": IDS, "position_ids": 2 * torch.arange(12)[None]}),
    "types of tokens": ("gpt2", {"input_ids": IDS, "token_type_ids": IDS % 3}),
}


@torch.no_grad()
def transformers_loss(model, batch):
    """All sequences have as many labels, so that transformers' mean is over the same tokens."""
    return model(**batch, labels=batch["input_ids"], use_cache=False).loss.item()


@pytest.mark.filterwarnings("ignore:.* does not fit into memory")
@pytest.mark.parametrize("options", [{}, {"forks": 2}, {"offload": True}, {"room": 1}], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_what_the_model_takes_decides_the_loss(name, options):
    architecture, batch = INPUTS[name]
    model = tiny_model(architecture)
    expected = {None: transformers_loss(model, batch)}
    for each in CANDIDATES:
        with mute(model, each.sublayers):
            expected[each] = transformers_loss(model, batch)
    if name != "images":
        assert abs(transformers_loss(model, {"input_ids": IDS}) - expected[None]) > 1e-3
    others = {"name": ["a", "b"], "weights": torch.ones(7), "mapping": {"a": 1}, "attention_mask": None}
    settings = {key: value for key, value in options.items() if key != "room"}
    what_if = WhatIf(model, [{**batch, **others}], **settings)
    if "room" in options:
        limit_memory(model, options["room"])
    if "room" in options and name == "images":
        with pytest.raises(MeasureError, match=r"2 sequences .*input_ids, labels, pixel_values.*use smaller batches"):
            what_if.losses(CANDIDATES)
        return
    losses = what_if.losses(CANDIDATES)
    assert {None: losses.base, **losses.without} == pytest.approx(expected, abs=1e-5)


def limit_memory(model, most):
    def allocate(_, __, output):
        if len(output) > most:
            raise torch.OutOfMemoryError("out of memory")

    model.get_decoder().get_input_embeddings().register_forward_hook(allocate)


def test_processes_share_what_can_be_told_apart():
    second = Processes(rank=1, size=2)
    share = shares_of(read_batches(tiny_model("llama"), [{"input_ids": IDS, "position_ids": PACKED}]), second)[0]
    assert torch.equal(share["position_ids"], PACKED[2:])
    three = INPUTS["positions of three axes"][1]
    share = shares_of(read_batches(tiny_model("qwen2.5-vl (qwen2)"), [three]), second)[0]
    assert torch.equal(share["position_ids"], three["position_ids"][:, 2:])
    with pytest.raises(DataError, match=r"pixel_values.*use one process"):
        shares_of(read_batches(tiny_model("llava (llama)"), [IMAGES]), second)


@pytest.mark.parametrize("kind", [dict, UserDict, BatchEncoding])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_whole_numbers_in_any_mapping_are_tokens(kind, dtype):
    model = tiny_model("opt")
    ids = IDS.to(dtype)
    mask = torch.ones(4, 12, dtype=dtype)
    losses = WhatIf(model, [kind({"input_ids": ids, "labels": ids, "attention_mask": mask})]).losses(CANDIDATES[:1])
    assert losses.base == pytest.approx(naive.mean_loss(model, [{"input_ids": IDS}]), abs=1e-5)


def test_a_module_that_reads_its_batch_is_compiled_whole():
    model = tiny_model("llama")
    read = torch.compile(lambda batch: model_inputs(model, batch), fullgraph=True, backend="eager")
    found = read({"input_ids": IDS.int(), "position_ids": PACKED, "labels": IDS, "weights": PACKED})
    assert {name: each.dtype for name, each in found.items()} == dict.fromkeys(
        ("input_ids", "position_ids"), torch.int64
    )
