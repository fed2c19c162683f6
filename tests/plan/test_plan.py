import json

import pytest

from lit_prune.errors import PlanError
from lit_prune.files import write_text
from lit_prune.plan import Candidate, ModelFacts, PrunePlan, PruneStep, SublayerId

FACTS = ModelFacts("llama", 4, 32, 1000, "tiny")
PLAN = PrunePlan(
    FACTS,
    (
        PruneStep(Candidate.parse("attention.2"), 100, 0.5, 2.0, 2.1, 5.5, 0, {"attention.2": 0.5, "mlp.2": 1.0}),
        PruneStep(Candidate.parse("block.3"), 300, float("inf"), None, None),
    ),
    calibration={"source": "builtin", "num_tokens": 80},
    scorer={"name": "nri"},
)


def test_round_trip_through_a_file(tmp_path):
    path = PLAN.save(tmp_path / "deep" / "plan.json")
    assert PrunePlan.load(path) == PLAN
    assert [each.name for each in path.parent.iterdir()] == ["plan.json"]
    data = json.loads(path.read_text())
    assert data["schema_version"] == 1
    assert data["steps"][1]["removed"] == "block.3"
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_gone_is_counted():
    assert [str(each) for each in PLAN.removed] == ["attention.2", "attention.3", "mlp.3"]
    assert PLAN.num_removed_parameters == 400
    assert PLAN.cost == 5.5


def test_a_folder_with_a_plan_is_read(tmp_path):
    PLAN.save(tmp_path / "prune_plan.json")
    assert PrunePlan.load(tmp_path) == PLAN


@pytest.mark.parametrize("text", ["attention", "attention.x", "norm.1", "mlp.-1", "", "mlp.1.2"])
def test_names_of_another_form_are_refused(text):
    with pytest.raises(PlanError, match="is not a sublayer"):
        SublayerId.parse(text)


def damaged(**changes):
    return {**PLAN.to_dict(), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (damaged(schema_version=2), "schema 2, this lit-prune reads up to 1"),
        (damaged(schema_version="1"), "not a prune plan"),
        ([], "not a prune plan"),
        ({"steps": []}, "not a prune plan"),
        (damaged(model={"model_type": "llama"}), "damaged"),
        (damaged(model="llama"), "damaged"),
        (damaged(steps=[{"removed": "mlp.1"}]), "damaged"),
        (damaged(steps=[{**PLAN.steps[0].to_dict(), "removed": 5}]), "is not a sublayer"),
        (damaged(steps=[{**PLAN.steps[0].to_dict(), "num_parameters": "many"}]), "num_parameters"),
        (damaged(steps=[PLAN.steps[0].to_dict()] * 2), "removes attention.2 twice"),
        (damaged(steps=7), "damaged"),
        (damaged(extra=1), "damaged"),
        (damaged(scorer=None), "scorer"),
    ],
)
def test_damaged_plans_are_refused(tmp_path, data, message):
    path = write_text(tmp_path / "plan.json", json.dumps(data))
    with pytest.raises(PlanError, match=message):
        PrunePlan.load(path)


def factors(fact):
    """A plan of `compensate: scale` with this fact."""
    steps = [{**PLAN.steps[0].to_dict(), "compensation": fact}, PLAN.steps[1].to_dict()]
    return damaged(compensation={"name": "scale"}, steps=steps)


HOSTILE = ["1.0", None, True, [1.0], {}, "nan", "inf", 0, -1.0, 1e-300, 1e300, 10**18]


@pytest.mark.parametrize(
    "fact",
    [
        *({"attention.2": {"factor": each}} for each in HOSTILE),
        *({"attention.2": each} for each in ("factor", 1.0, None, [], {}, {"Factor": 1.0})),
        *({each: {"factor": 1.0}} for each in ("attention.1", "mlp.2", "block.2", "attention.-2", "", "attention.2.x")),
        "attention.2",
        ["attention.2"],
        None,
    ],
    ids=repr,
)
def test_corrections_that_cannot_be_are_refused_when_read(tmp_path, fact):
    path = write_text(tmp_path / "plan.json", json.dumps(factors(fact)))
    with pytest.raises(PlanError, match="the plan is damaged|is not a sublayer"):
        PrunePlan.load(path)


def test_corrections_that_can_be_are_read():
    assert PrunePlan.from_dict(factors({"attention.2": {"factor": 1.25}})).steps[0].compensation
    linear = damaged(compensation={"name": "linear"}, steps=factors({"attention.2": {"ridge": 0.1}})["steps"])
    assert PrunePlan.from_dict(linear).steps[0].compensation == {"attention.2": {"ridge": 0.1}}


def test_a_plan_that_was_cut_by_hand_says_what_is_left():
    budget = {"amount": 0.4, "of": "params", "total": 1000, "target": 400, "reached": 400, "num_removals": 2}
    ceiling = {"max_rise": 0.5, "rise": 0.4, "stopped_by": "amount"}
    cut = PLAN.to_dict()["steps"][:1]
    whole = damaged(budget={**budget, **ceiling})
    assert PrunePlan.from_dict(whole).budget == {**budget, **ceiling}
    found = PrunePlan.from_dict({**whole, "steps": cut}).budget
    assert found.pop("rise") == pytest.approx(2.718281828459045**0.1 - 1)
    assert found == {**budget, "max_rise": 0.5, "reached": 100, "num_removals": 1}
    flops = {**budget, "of": "flops", "unit": "FLOP of a token"}
    with pytest.warns(UserWarning, match="the plan has 1 removals, its budget tells of another number"):
        found = PrunePlan.from_dict(damaged(budget=flops, steps=cut)).budget
    assert "reached" not in found


def test_truncated_and_missing_files_are_refused(tmp_path):
    path = PLAN.save(tmp_path / "plan.json")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(PlanError, match="damaged"):
        PrunePlan.load(path)
    with pytest.raises(PlanError, match="cannot read"):
        PrunePlan.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="damaged"):
        PrunePlan.load(tmp_path / "binary.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "plan.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_every_difference_of_models_is_named():
    with pytest.raises(PlanError, match=r"num_blocks 4 in the plan, 5 in the model; hidden_size 32 .* 64"):
        FACTS.require_same(ModelFacts("llama", 5, 64, 1000, "other"))
    FACTS.require_same(ModelFacts("llama", 4, 32, 1000, "another name is no difference"))


def test_names_of_sets_have_one_order_and_one_form():
    names = ("mlp.7+block.3", "mlp.3+mlp.7+attention.3", "block.3+mlp.7+mlp.3")
    assert {Candidate.parse(name) for name in names} == {Candidate.parse("block.3+mlp.7")}
    assert Candidate.parse(names[0]).name == "block.3+mlp.7"
    assert Candidate.parse(names[0]).block == 3
    for name in ("", "block.3+", "block.3,mlp.7", "block.x"):
        with pytest.raises(PlanError, match="is not a sublayer"):
            Candidate.parse(name)
