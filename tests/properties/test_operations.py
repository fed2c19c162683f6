"""Generated cases: any set of sublayers, through any order of operations, gives the muted dense model's logits."""

import copy
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lit_prune import PrunePlan, apply_plan, load
from lit_prune.anatomy import find_sublayers
from lit_prune.export import export_model, save
from lit_prune.plan import KINDS, Candidate, PruneStep, SublayerId
from lit_prune.surgery import compacted, mute, remove
from tests.tiny import NUM_BLOCKS, tiny_model

FAMILIES = ("llama", "gpt2", "gemma2", "falcon 7B", "mixtral", "olmo2")
"""Norms before, behind and around, parallel blocks, modules that add by themselves, experts."""
EVERY = [SublayerId(block, kind) for block in range(NUM_BLOCKS) for kind in KINDS]
TOKENS = torch.randint(3, 128, (2, 14), generator=torch.Generator().manual_seed(0))
DENSE = {name: tiny_model(name) for name in FAMILIES}
# The same cases at every run, so that a change alone makes a run fail; the time of a case depends on the machine.
QUIET = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)

families = st.sampled_from(FAMILIES)
sets = st.lists(st.sampled_from(EVERY), unique=True, max_size=2 * NUM_BLOCKS - 1)


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def close(found, expected):
    return torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


def saved_and_loaded(model, folder):
    return load(save(model, folder / "saved"))


def loaded_by_transformers(model, folder):
    return AutoModelForCausalLM.from_pretrained(save(model, folder / "stock"))


def exported(model, folder):
    return AutoModelForCausalLM.from_pretrained(
        export_model(model, folder / "exported", format="hf-remote-code"), trust_remote_code=True
    )


def copied(model, folder):
    return copy.deepcopy(model)


def put_into_an_equal_one(model, folder):
    """What a checkpoint does: the state of one goes into another that was built anew."""
    other = load(save(model, folder / "other"))
    for parameter in other.parameters():
        parameter.data.zero_()
    with compacted(model):
        other.load_state_dict(model.state_dict())
    return other


def opened_and_closed(model, folder):
    with compacted(model):
        logits(model)
    return model


OPERATIONS = (saved_and_loaded, loaded_by_transformers, exported, copied, put_into_an_equal_one, opened_and_closed)


@QUIET
@given(family=families, gone=sets, cuts=st.integers(1, 3), operations=st.lists(st.sampled_from(OPERATIONS), max_size=4))
def test_any_order_of_operations_gives_the_muted_models_logits(family, gone, cuts, operations):
    dense = DENSE[family]
    with mute(dense, gone):
        expected = logits(dense)
    model = copy.deepcopy(dense)
    parts = [gone[start::cuts] for start in range(cuts)]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(max(len(operations), cuts)):
            if number < cuts:
                remove(model, [each for each in parts[number] if each in find_sublayers(model)])
            if number < len(operations):
                place = Path(folder) / str(number)
                place.mkdir()
                model = operations[number](model, place)
    assert close(logits(model), expected)
    assert set(find_sublayers(model).removed) == set(gone)


@QUIET
@given(family=families, nested=st.lists(sets, min_size=1, max_size=4))
def test_mute_and_restore_leave_the_model_bit_identical(family, nested):
    model = DENSE[family]
    config, state = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    modules, before = [*model.named_modules()], logits(model)
    seen = set()
    with ExitStack() as stack:
        for each in nested:
            new = [one for one in each if one not in seen]
            seen |= set(new)
            stack.enter_context(mute(model, new))
            logits(model)
    assert [*model.named_modules()] == modules
    assert model.config.to_dict() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model), before)


@QUIET
@given(family=families, gone=sets, order=st.randoms(use_true_random=False))
def test_a_plan_applies_in_any_order_and_reads_back(family, gone, order):
    dense = DENSE[family]
    whole = find_sublayers(dense)
    shuffled = [*gone]
    order.shuffle(shuffled)
    left, steps = set(EVERY), []
    for each in shuffled:
        steps.append(
            PruneStep(
                Candidate((each,)),
                whole.num_freed([*(set(EVERY) - left), each]) - sum(step.num_parameters for step in steps),
            )
        )
        left.discard(each)
    plan = PrunePlan(whole.facts(), tuple(steps))
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    model = copy.deepcopy(dense)
    apply_plan(model, plan)
    with mute(dense, gone):
        assert close(logits(model), logits(dense))
    assert sum(each.numel() for each in model.parameters()) == whole.num_parameters - plan.num_removed_parameters


numbers = st.floats(allow_nan=False, allow_infinity=True)
words = st.text(max_size=12)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    numbers,
    words.filter(lambda each: each not in ("inf", "-inf", "nan")),
)
settings_of_a_plan = st.dictionaries(words, leaves, max_size=4)


@QUIET
@given(
    gone=sets,
    scores=st.dictionaries(words, numbers, max_size=4),
    losses=st.tuples(st.none() | numbers, st.none() | numbers),
    facts=st.tuples(settings_of_a_plan, settings_of_a_plan, settings_of_a_plan),
)
def test_a_plan_on_disk_is_the_plan(gone, scores, losses, facts):
    steps = [
        PruneStep(Candidate((each,)), 7, score=losses[0], nll_before=losses[0], nll_after=losses[1], scores=scores)
        for each in gone
    ]
    calibration, scorer, search = facts
    plan = PrunePlan(
        find_sublayers(DENSE["llama"]).facts("a name"),
        tuple(steps),
        calibration=calibration,
        scorer=scorer,
        search=search,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prune_plan.json"
        plan.save(file)
        assert PrunePlan.load(file) == plan
        whole = file.read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 2):
            file.write_bytes(whole[:cut])
            with pytest.raises(Exception, match="plan"):
                PrunePlan.load(file)
