"""On a GPU: the same plans as on the CPU, trainings in its precisions, memory as promised."""

import copy
import math

import pytest
import torch

from benchmarks.memory import measure_search_memory
from lit_prune import prune
from lit_prune.surgery import mute, removed_sublayers
from tests.callbacks.test_sublayer_prune import module
from tests.callbacks.test_together import fit
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
GPU = "cuda:0"
BATCHES = [
    {"input_ids": each} for each in torch.randint(3, 128, (3, 4, 24), generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forks": 4},
        {"offload": True},
        {"max_state_bytes": 0},
        {"search": "lazy"},
        {"scorer": "block_influence", "granularity": "block"},
        {"scorer": "kl"},
        {"compensate": "linear"},
    ],
)
def test_the_plan_is_the_cpus(options):
    there, here = tiny_model("llama").to(GPU), tiny_model("llama")
    plan = prune(there, BATCHES, amount=0.3, progress=False, **options)
    assert plan.removed == prune(here, BATCHES, amount=0.3, progress=False, **options).removed
    with torch.no_grad():
        found = there(BATCHES[0]["input_ids"].to(GPU)).logits
        assert torch.allclose(found.cpu(), here(BATCHES[0]["input_ids"]).logits, atol=1e-4)


def test_what_is_generated_is_what_the_muted_model_generates():
    whole = tiny_model("llama").to(GPU)
    pruned = copy.deepcopy(whole)
    plan = prune(pruned, BATCHES, amount=0.3, progress=False)
    prompt = BATCHES[0]["input_ids"].to(GPU)
    settings = {"max_new_tokens": 12, "do_sample": False}
    with mute(whole, plan.removed):
        expected = whole.generate(prompt, use_cache=False, **settings)
    assert torch.equal(pruned.generate(prompt, **settings), expected)


def test_latency_is_a_budget():
    model = tiny_model("llama").to(GPU)
    plan = prune(model, BATCHES, amount=0.2, of="latency", progress=False)
    assert plan.budget["reached"] >= 0.2 * plan.budget["total"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("options", [{}, {"healing": True}])
def test_a_training_drops_in_every_precision(tmp_path, precision, options):
    network = module()
    callback, losses = fit(tmp_path, network, options=options, precision=precision, accelerator="gpu", devices=1)
    assert [each.removed for each in callback.plan.steps]
    assert set(removed_sublayers(network.model)) == set(callback.plan.removed)
    assert all(math.isfinite(loss) for _, loss, _ in losses)


@pytest.mark.parametrize(("offload", "most"), [(False, 1.35), (True, 1.15)])
def test_the_memory_of_a_search(offload, most):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 2048}
    model = tiny_model("llama", **sizes, max_position_embeddings=512).to(GPU, torch.bfloat16)
    tokens = [{"input_ids": torch.randint(3, 2000, (1, 512))} for _ in range(2)]
    memory = measure_search_memory(
        model,
        tokens,
        lambda: prune(model, tokens, amount=0.1, search="one_shot", offload=offload, progress=False),
    )
    print(f"memory of the search, of model and states: {memory.share:.3f} (offload {offload})")
    assert memory.share < most
