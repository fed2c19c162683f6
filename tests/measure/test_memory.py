"""What a search holds in memory: states between blocks, counted while they live, and where they are."""

import weakref

import pytest
import torch

from lit_prune import prune
from lit_prune.measure import Divergence, WhatIf, runner, sequence_losses, trace
from lit_prune.plan import Candidate
from tests.tiny import NUM_BLOCKS, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (2, 20), generator=GENERATOR)} for _ in range(3)]
STATE_BYTES = 2 * 20 * 32 * 4  # one block's output for one batch
CANDIDATES = [Candidate.parse(f"{kind}.{block}") for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]


class Live:
    """The most bytes of block outputs that lived at a time, from weak references: nobody's own count."""

    def __init__(self, model):
        self.references = []
        self.most = 0
        for block in model.model.layers:
            block.register_forward_hook(self.note)

    def note(self, _, __, output):
        self.references = [each for each in self.references if each() is not None]
        if not any(each() is output for each in self.references):  # a carried state that comes by again
            self.references.append(weakref.ref(output))
        self.most = max(self.most, sum(each().nbytes for each in self.references))


@pytest.mark.parametrize(
    ("max_state_bytes", "num_kept"),
    # A tenth of the 45,344 float32 parameters has room for one state of each batch.
    [(0, 0), (None, 3), (3 * 2 * STATE_BYTES, 3 * 2), (1 << 30, 3 * NUM_BLOCKS)],
)
@pytest.mark.parametrize("search", ["progressive", "lazy", "one_shot"])
def test_states_of_one_batch_live_and_those_that_are_kept(search, max_state_bytes, num_kept):
    model = tiny_model("llama")
    live = Live(model)
    prune(model, BATCHES, amount=0.4, search=search, progress=False, max_state_bytes=max_state_bytes)
    held = num_kept + NUM_BLOCKS
    # The one that goes into a block, and the one that comes out of it.
    assert live.most <= (held + 2) * STATE_BYTES
    assert live.most >= NUM_BLOCKS * STATE_BYTES


def test_offloaded_states_are_elsewhere_but_for_the_one_in_use(monkeypatch):
    """Where there is one device only, float64 plays the CPU: there and back changes nothing."""

    def moved(state, device):
        fetched.append(device) if device is not trace.HOST else None
        return state.double() if device is trace.HOST else state.float()

    fetched = []
    monkeypatch.setattr(trace, "HOST", torch.device("cpu"))
    monkeypatch.setattr(trace, "moved", moved)
    model = tiny_model("llama")
    live = Live(model)
    what_if = WhatIf(model, BATCHES, offload=True, max_state_bytes=1 << 30)
    losses = what_if.losses(CANDIDATES)
    kept = [state for each in what_if.states.traces.values() for state in each.states.values()]
    assert len(kept) == 3 * NUM_BLOCKS
    assert {state.dtype for state in kept} == {torch.float64}
    # What a measurement starts from, what goes into a block and what comes out of it.
    assert live.most <= 3 * STATE_BYTES
    assert len(fetched) == 3 * 2 * (NUM_BLOCKS - 1), "once for each candidate behind the first block"
    assert losses.without == WhatIf(tiny_model("llama"), BATCHES).losses(CANDIDATES).without


def test_the_dense_model_of_a_divergence_is_fetched_too(monkeypatch):
    """Its states lie where the others do; float64 plays the CPU again."""
    monkeypatch.setattr(trace, "moved", lambda state, device: state.double() if device is trace.HOST else state.float())
    monkeypatch.setattr(trace, "HOST", torch.device("cpu"))
    spared = WhatIf(tiny_model("llama"), BATCHES, offload=True).beside("kl", Divergence)
    whole = WhatIf(tiny_model("llama"), BATCHES).beside("kl", Divergence)
    assert spared.losses(CANDIDATES).without == whole.losses(CANDIDATES).without


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
def test_the_head_in_parts_finds_the_same_losses(monkeypatch, architecture):
    monkeypatch.setattr(runner, "POSITIONS_AT_A_TIME", 6)
    batches = [{**each, "attention_mask": torch.ones_like(each["input_ids"])} for each in BATCHES]
    batches[0]["attention_mask"][1, 13:] = 0
    model = tiny_model(architecture)
    heads = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: heads.append(logits.shape[1]))
    spared = WhatIf(model, batches, offload=True)
    candidates = [*CANDIDATES, Candidate.parse("block.3")]
    losses, whole = spared.losses(candidates), WhatIf(tiny_model(architecture), batches).losses(candidates)
    assert set(heads) == {6, 2}
    assert losses.num_tokens == whole.num_tokens
    assert losses.base == pytest.approx(whole.base, abs=1e-6)
    assert losses.without == pytest.approx(whole.without, abs=1e-6)
    assert len(heads) == 4 * spared.num_head_evaluations
    assert not any("forward" in layer.__dict__ for layer in model.modules())


def test_a_search_may_offload():
    plans = [prune(tiny_model("llama"), BATCHES, amount=0.3, progress=False, offload=each) for each in (True, False)]
    assert plans[0] == plans[1]


def test_only_a_few_logits_are_copied_to_float32(monkeypatch):
    copied = []
    original = torch.Tensor.float

    def spy(tensor):
        copied.append(tensor.numel())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", spy)
    monkeypatch.setattr("lit_prune.measure.losses.ELEMENTS_AT_A_TIME", (64 * 7, 64 * 7))
    logits, labels = torch.randn(2, 300, 7, generator=GENERATOR).bfloat16(), torch.randint(7, (2, 300))
    nll, tokens = sequence_losses(logits, labels)
    expected = -logits[:, :-1].double().log_softmax(-1).gather(-1, labels[:, 1:, None]).sum((1, 2))
    assert torch.allclose(nll, expected, rtol=1e-5)
    assert tokens.tolist() == [299, 299]
    assert max(copied) <= 64 * 7
