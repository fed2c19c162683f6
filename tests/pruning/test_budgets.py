"""What users pay for: budgets of FLOPs, KV cache and seconds, and the ceiling on the rise of perplexity."""

import json
import math

import pytest
import torch

from lit_prune.anatomy import find_sublayers
from lit_prune.costs import Latency, prices
from lit_prune.errors import BudgetError, LitPruneError
from lit_prune.plan import Candidate, PrunePlan
from lit_prune.pruning import apply_plan, prune
from lit_prune.searches import Budget
from lit_prune.surgery import removed_sublayers
from tests import naive
from tests.tiny import NUM_BLOCKS, tiny_model

BATCHES = [{"input_ids": torch.randint(3, 128, (4, 20), generator=torch.Generator().manual_seed(1))}]
# One token after 20 others: scores and weighted values over 21 keys; 2 of 4 heads of 8 have keys and values.
MLP_FLOPS = 2 * 3 * 32 * 64
ATTENTION_FLOPS = 2 * (2 * 32 * 32 + 2 * 32 * 16) + 2 * 2 * 21 * 32
TOTAL_FLOPS = NUM_BLOCKS * (MLP_FLOPS + ATTENTION_FLOPS) + 2 * 128 * 32
KV_OF_A_BLOCK = 2 * 2 * 8
# A model and ceilings under which the lowest score does not always fit, and another still does.
SEED, RISES = 2, (0.02, 0.09, 0.32, 0.7)
A, B, C = (Candidate.parse(name) for name in ("attention.0", "mlp.0", "attention.1"))


def names(plan):
    return [step.removed.name for step in plan.steps]


def own_text(seed=0):
    return [{"input_ids": naive.own_text(tiny_model("llama", seed=seed), 8, 40)}]


class TestUnits:
    def test_flops_by_hand(self):
        plan = prune(tiny_model("llama"), BATCHES, amount=0.3, of="flops", progress=False)
        costs = [ATTENTION_FLOPS if "attention" in name else MLP_FLOPS for name in names(plan)]
        assert plan.budget["total"] == TOTAL_FLOPS
        assert plan.budget["target"] == math.ceil(0.3 * TOTAL_FLOPS)
        assert plan.budget["reached"] == sum(costs) >= 0.3 * TOTAL_FLOPS > sum(costs[:-1])
        assert plan.budget["num_positions"] == 20
        assert plan.budget["stopped_by"] == "amount"

    def test_the_last_removal_overshoots_least_in_the_unit(self):
        # An attention is 9.53 % of the FLOPs and 6.8 % of the parameters, an mlp 13.3 % and 13.6 %.
        (name,) = names(prune(tiny_model("llama"), own_text(), amount=0.095, of="flops", progress=False))
        assert name.startswith("attention")
        assert len(names(prune(tiny_model("llama"), own_text(), amount=0.095, protect=["mlp.0"], progress=False))) == 1

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_kv_cache_by_hand_and_what_keeps_none_stays(self, number):
        plan = prune(tiny_model("llama"), BATCHES, amount=number / 4 - 1e-9, of="kv_cache", progress=False)
        assert len(plan.steps) == number
        assert all(name.startswith("attention") for step in plan.steps for name in step.scores)
        assert plan.budget["total"] == NUM_BLOCKS * KV_OF_A_BLOCK
        assert plan.budget["reached"] == number * KV_OF_A_BLOCK

    def test_norms_that_blocks_share_are_counted_once(self):
        model = tiny_model("phi")
        total = sum(each.numel() for each in model.parameters())
        plan = prune(model, BATCHES, amount=0.4, progress=False)
        assert plan.budget["reached"] == total - sum(each.numel() for each in model.parameters())

    def test_shares_of_equal_parts_are_exact(self):
        assert [Budget(number / 100, 100).target for number in range(1, 100)] == list(range(1, 100))
        assert Budget(0.07, 100.0).remaining(7.0) == 0


class TestLatency:
    @pytest.fixture
    def timed(self, monkeypatch):
        calls = []

        def stub(model, **options):
            calls.append(options)
            worth = {"attention": 0.25, "mlp": -0.01}
            return Latency(2.0, {each.id: worth[each.id.kind] for each in find_sublayers(model).sublayers})

        monkeypatch.setattr(prices, "measure_latency", stub)
        return calls

    def test_seconds_are_what_counts_and_what_saves_none_stays(self, timed):
        of = {"name": "latency", "phase": "prefill", "batch": 4, "length": 64}
        plan = prune(tiny_model("llama"), BATCHES, amount=0.3, of=of, progress=False)
        assert timed == [{"phase": "prefill", "batch": 4, "length": 64}]
        assert len(plan.steps) == 3
        assert all(name.startswith("attention") for name in names(plan))
        assert plan.budget["target"] == pytest.approx(0.6)
        assert plan.budget["reached"] == 0.75
        assert {**plan.budget, **timed[0], "device": "cpu", "dtype": "float32"} == plan.budget
        assert PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan

    def test_too_much_is_refused_before_losses_are_measured(self, timed):
        with pytest.raises(BudgetError, match=r"sublayers cannot give 60.0% of the latency: all that may go is 50.0%"):
            prune(tiny_model("llama"), BATCHES, amount=0.6, of="latency", progress=False)

    def test_a_search_that_goes_on_decides_by_the_seconds_that_it_began_with(self, timed, tmp_path):
        class Killed(Exception):
            pass

        def kill(plan):
            raise Killed

        options = {"amount": 0.4, "of": "latency", "journal": tmp_path / "search.jsonl", "progress": False}
        with pytest.raises(Killed):
            prune(tiny_model("llama"), BATCHES, on_step=kill, **options)
        plan = prune(tiny_model("llama"), BATCHES, **options)
        assert len(timed) == 1
        assert len(plan.steps) == 4


class TestCeiling:
    def naive_order(self, batches, max_rise):
        model, gone = tiny_model("llama", seed=SEED), []
        dense = math.exp(naive.mean_loss(model, batches))
        skipped = False
        while True:
            scores = naive.scores(model, "llama", batches, gone, by_share=True)
            fitting = {}
            for each in scores:
                with naive.zeroed(model, "llama", [*gone, each]):
                    if math.exp(naive.mean_loss(model, batches)) / dense - 1 <= max_rise:
                        fitting[each] = scores[each]
            if not fitting:
                return [f"{kind}.{block}" for kind, block in gone], skipped
            gone.append(min(fitting, key=fitting.__getitem__))
            skipped |= scores[gone[-1]] > min(scores.values())

    @pytest.mark.parametrize("max_rise", RISES)
    def test_as_much_goes_as_fits(self, max_rise):
        batches = own_text(SEED)
        expected, _ = self.naive_order(batches, max_rise)
        model = tiny_model("llama", seed=SEED)
        dense = naive.mean_loss(model, batches)
        plan = prune(model, batches, max_rise=max_rise, progress=False)
        assert names(plan) == expected
        rise = math.expm1(naive.mean_loss(model, batches) - dense)
        assert plan.budget["rise"] == pytest.approx(rise, abs=1e-5)
        assert rise <= max_rise
        assert plan.budget["amount"] is None
        assert plan.budget["target"] is None
        assert plan.budget["stopped_by"] == "max_rise"
        assert PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan

    def test_what_does_not_fit_is_passed_over(self):
        assert any(self.naive_order(own_text(SEED), rise)[1] for rise in RISES), "the test above has one"

    @pytest.mark.parametrize(("search", "scorer"), [("one_shot", "nri"), ("lazy", "nri"), ("progressive", "random"),
                                                     ("one_shot", "random")])  # fmt: skip
    def test_every_search_and_scorer_keeps_under_it(self, search, scorer):
        batches, model = own_text(SEED), tiny_model("llama", seed=SEED)
        dense = naive.mean_loss(model, batches)
        plan = prune(model, batches, max_rise=1.0, search=search, scorer=scorer, progress=False)
        gone = [(each.kind, each.block) for each in plan.removed]
        reference = tiny_model("llama", seed=SEED)
        for number in range(1, len(gone) + 1):
            with naive.zeroed(reference, "llama", gone[:number]):
                nll = naive.mean_loss(reference, batches)
            assert math.expm1(nll - dense) <= 1.0
            assert plan.steps[number - 1].nll_after == pytest.approx(nll, abs=1e-5)
        for each in naive.scores(reference, "llama", batches, gone, by_share=True):
            with naive.zeroed(reference, "llama", [*gone, each]):
                assert math.expm1(naive.mean_loss(reference, batches) - dense) > 1.0, "nothing more fits"

    def test_whichever_comes_first(self):
        batches = own_text(SEED)
        wide = prune(tiny_model("llama", seed=SEED), batches, amount=0.1, max_rise=100.0, progress=False)
        plain = prune(tiny_model("llama", seed=SEED), batches, amount=0.1, progress=False)
        assert names(wide) == names(plain)
        assert wide.budget["stopped_by"] == "amount"
        narrow = prune(tiny_model("llama", seed=SEED), batches, amount=0.8, max_rise=0.32, progress=False)
        assert names(narrow) == self.naive_order(batches, 0.32)[0]
        assert narrow.budget["stopped_by"] == "max_rise"
        assert narrow.budget["reached"] < narrow.budget["target"]

    def test_nothing_fits_and_everything_fits(self):
        model = tiny_model("llama", seed=SEED)
        nothing = prune(model, own_text(SEED), max_rise=0.0, progress=False)
        assert (nothing.steps, nothing.budget["rise"], removed_sublayers(model)) == ((), 0.0, ())
        everything = prune(tiny_model("llama", seed=SEED), BATCHES, max_rise=1e9, granularity="block", progress=False)
        assert len(everything.steps) == NUM_BLOCKS
        assert everything.budget["stopped_by"] == "nothing left"

    def test_the_check_costs_nothing_where_losses_are_known(self):
        free = prune(tiny_model("llama", seed=SEED), own_text(SEED), amount=0.3, progress=False)
        checked = prune(tiny_model("llama", seed=SEED), own_text(SEED), amount=0.3, max_rise=1e9, progress=False)
        assert checked.cost == free.cost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say how much is to go"),
        ({"max_rise": -0.1}, "share by which perplexity may rise, such as 0.05; found -0.1"),
        ({"max_rise": math.nan}, "found nan"),
        ({"amount": 0.2, "of": "flop"}, "must be one of params, flops, kv_cache, latency"),
        ({"amount": 0.2, "of": "kv_cache", "granularity": "mlp"}, r"mlp sublayers cannot give 20.0% of the KV cache: "
         "all that may go is 0.0%"),
        ({"amount": 0.6, "of": "flops", "granularity": "attention"}, "cannot give 60.0% of the FLOPs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_forward(options, message):
    model = tiny_model("llama")
    model.register_forward_hook(lambda *_: pytest.fail("measured"))
    with pytest.raises(LitPruneError, match=message):
        prune(model, BATCHES, progress=False, **options)


def test_a_plan_of_before_is_read_and_applied():
    data = prune(tiny_model("llama"), BATCHES, amount=0.2, progress=False).to_dict()
    data["budget"] = {"amount": 0.2, "num_parameters": data["model"]["num_parameters"], "last": "least_overshoot"}
    model = tiny_model("llama")
    apply_plan(model, PrunePlan.from_dict(data))
    assert len(removed_sublayers(model)) == len(data["steps"])
