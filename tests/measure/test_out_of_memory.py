"""A batch that memory has no room for is measured in parts, with the figures of the whole."""

import json

import pytest
import torch

from lit_prune import prune
from lit_prune.errors import MeasureError
from tests.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [{"input_ids": torch.randint(3, 128, (6, 20), generator=GENERATOR)} for _ in range(2)]
BATCHES[0]["attention_mask"] = torch.ones(6, 20, dtype=torch.long)
BATCHES[0]["attention_mask"][4, :7] = 0


class Memory:
    """Room for some sequences at a time in a block, as a GPU would have it; notes how many each pass had."""

    def __init__(self, model, room, error=None):
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes = []
        model.model.layers[2].register_forward_hook(self.allocate)

    def allocate(self, _, __, output):
        if output.shape[1] < 20:
            return  # the proof that the anatomy is right takes a few tokens
        self.sizes.append(len(output))
        if len(output) > self.room:
            raise self.error


def search(tmp_path, name, room=None, error=None, **options):
    model = tiny_model("llama")
    memory = None if room is None else Memory(model, room, error)
    settings = {"amount": 0.4, "progress": False, "max_state_bytes": 1 << 30, **options}
    plan = prune(model, BATCHES, journal=tmp_path / name, **settings)
    lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()[1:]]
    return plan, memory, {(tuple(each["without"]), str(each["batch"])): each for each in lines}


@pytest.mark.parametrize(("room", "scorer"), [(3, "nri"), (2, "kl"), (1, "kl")])
def test_it_goes_on_with_fewer_sequences_and_finds_the_same(tmp_path, scorer, room):
    expected, _, whole = search(tmp_path, "whole", scorer=scorer)
    with pytest.warns(UserWarning, match="does not fit into memory: . at a time") as warned:
        plan, memory, parts = search(tmp_path, "parts", room, scorer=scorer)
    told = [str(each.message) for each in warned if "memory" in str(each.message)]
    assert f" {room} at a time" in told[-1]
    sizes = {3: [6, 3], 2: [6, 3, 2], 1: [6, 3, 2, 1]}[room]
    assert len(told) == len(sizes) - 1, "once for each size"
    assert [each for each in memory.sizes if each > room] == sizes[:-1], "remembered for all batches and rounds"
    assert [step.removed for step in plan.steps] == [step.removed for step in expected.steps]
    assert [step.cost for step in plan.steps] == [step.cost for step in expected.steps]
    assert set(parts) == set(whole), "whole batches"
    for key, line in whole.items():
        assert parts[key]["nll"] == pytest.approx(line["nll"], rel=1e-4, abs=1e-5)
        assert parts[key]["blocks"] == line["blocks"]


def test_the_states_of_whole_batches_are_split_and_not_computed_again(tmp_path):
    """Memory that gets smaller in a later round, and in the middle of a batch."""
    expected, *_ = search(tmp_path, "whole")
    model = tiny_model("llama")
    memory = Memory(model, 6)

    def shrink(plan):
        memory.room = 4
        memory.sizes.clear()

    with pytest.warns(UserWarning, match="6 sequences does not fit into memory: 3 at a time"):
        plan = prune(model, BATCHES, amount=0.4, progress=False, max_state_bytes=1 << 30, on_step=shrink)
    assert [step.cost for step in plan.steps] == [step.cost for step in expected.steps]


def test_what_was_measured_in_parts_goes_on_whole(tmp_path):
    with pytest.warns(UserWarning, match="3 at a time"):
        plan, *_ = search(tmp_path, "journal", 3, scorer="kl", amount=0.2)
    with pytest.warns(UserWarning, match="3 at a time"):
        again, *_ = search(tmp_path, "journal", 3, scorer="kl", amount=0.2)
    assert [step.scores for step in again.steps] == [step.scores for step in plan.steps]


def test_forks_make_way_before_sequences_do(tmp_path):
    expected, *_ = search(tmp_path, "whole")
    with pytest.warns(UserWarning, match="one at a time") as warned:
        plan, memory, _ = search(tmp_path, "forks", 6, forks=3)
    assert sum("memory" in str(each.message) for each in warned) == 1
    assert [step.removed for step in plan.steps] == [step.removed for step in expected.steps]
    assert [step.cost for step in plan.steps] == [step.cost for step in expected.steps]
    assert memory.sizes.count(18) == 1


def test_the_cpu_has_an_end_too(tmp_path):
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried")
    with pytest.warns(UserWarning, match="3 at a time"):
        search(tmp_path, "cpu", 3, error)


def test_one_sequence_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path):
    with (
        pytest.warns(UserWarning, match=". at a time"),
        pytest.raises(MeasureError, match="one sequence of 20 tokens does not fit .* shorter window"),
    ):
        search(tmp_path, "none", 0)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        search(tmp_path, "other", 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
