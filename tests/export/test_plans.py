"""Plans as other tools take them, against what their documentation shows."""

import json

import pytest
import yaml

from lit_prune import PrunePlan, load
from lit_prune.__main__ import main
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import PlanError
from lit_prune.export.plans import PLAN_FORMATS, plan_of_config
from lit_prune.plan import Candidate, ModelFacts, PruneStep
from lit_prune.surgery import removed_sublayers
from tests.tiny import character_tokenizer, tiny_model


def plan_of(*names, name="meta-llama/Llama-3.1-8B", blocks=32):
    facts = ModelFacts("llama", blocks, 32, 10_000_000, name)
    return PrunePlan(facts, tuple(PruneStep(Candidate.parse(each), 10) for each in names))


def test_llama_quantize_takes_numbers_from_0_with_commas():
    assert PLAN_FORMATS["llama-quantize"](plan_of("block.9", "block.3", "attention.7", "mlp.7")) == (
        "--prune-layers 3,7,9"
    )


def test_mergekit_takes_runs_of_layers_without_their_end():
    # The form of mergekit's documentation, of a Llama without layers 0, 22 to 29 and 31.
    expected = """
slices:
  - sources:
      - model: meta-llama/Llama-3.1-8B
        layer_range: [1, 22]
  - sources:
      - model: meta-llama/Llama-3.1-8B
        layer_range: [30, 31]
merge_method: passthrough
"""
    plan = plan_of("block.31", "block.0", *(f"block.{number}" for number in range(22, 30)))
    assert yaml.safe_load(PLAN_FORMATS["mergekit"](plan)) == yaml.safe_load(expected)


@pytest.mark.parametrize("form", ["llama-quantize", "mergekit"])
def test_single_sublayers_are_refused_where_blocks_are_all_that_is_known(form):
    with pytest.raises(PlanError, match=r"removes attention\.3 alone, and this tool knows whole blocks"):
        PLAN_FORMATS[form](plan_of("block.9", "attention.3"))
    with pytest.raises(PlanError, match="removes nothing"):
        PLAN_FORMATS[form](plan_of())


def dense_folder(tmp_path, **options):
    folder = str(tmp_path / "dense")
    tiny_model("llama", **options).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def test_puzzletron_says_of_every_part_whether_it_is_there(tmp_path):
    dense = dense_folder(tmp_path)
    facts = find_sublayers(load(dense)).facts(dense)
    plan = PrunePlan(facts, (PruneStep(Candidate.parse("attention.1"), 1), PruneStep(Candidate.parse("block.3"), 1)))
    attention, ffn = {"no_op": False, "num_key_value_heads": 2}, {"no_op": False, "intermediate_size": 64}
    no_attention, no_ffn = {"no_op": True, "num_key_value_heads": None}, {"no_op": True, "intermediate_size": None}
    assert json.loads(PLAN_FORMATS["puzzletron"](plan)) == {
        "block_configs": [
            {"attention": attention, "ffn": ffn},
            {"attention": no_attention, "ffn": ffn},
            {"attention": attention, "ffn": ffn},
            {"attention": no_attention, "ffn": no_ffn},
        ]
    }


def decilm(*gone):
    """The entry of Llama-3_1-Nemotron-51B's config for every block, with these parts gone."""
    return {
        "architectures": ["DeciLMForCausalLM"],
        "block_configs": [
            {
                "attention": {
                    "n_heads_in_group": None if f"attention.{number}" in gone else 2,
                    "no_op": f"attention.{number}" in gone,
                    "num_sink_tokens": None,
                    "replace_with_linear": False,
                    "sparsify": None,
                    "window_length": None,
                },
                "ffn": {"no_op": f"mlp.{number}" in gone, "replace_with_linear": False, "sparsify": None},
            }
            for number in range(4)
        ],
    }


def test_a_config_with_block_configs_is_applied_as_a_plan(tmp_path, capsys):
    dense, config, out = dense_folder(tmp_path), tmp_path / "config.json", str(tmp_path / "out")
    config.write_text(json.dumps(decilm("attention.1", "attention.2", "mlp.2", "mlp.3")))
    assert main(["apply", str(config), dense, "--output", out]) == 0
    assert "removed attention.1, block.2, mlp.3" in capsys.readouterr().out
    assert {*map(str, removed_sublayers(load(out)))} == {"attention.1", "attention.2", "mlp.2", "mlp.3"}
    # And there and back.
    assert main(["export", out, "--format", "puzzletron", "--output", str(tmp_path / "again.json")]) == 0
    again = plan_of_config(tmp_path / "again.json", lambda: load(dense))
    assert [step.removed for step in again.steps] == [step.removed for step in PrunePlan.load(out).steps]
    capsys.readouterr()
    assert main(["export", out, "--format", "mergekit"]) == 2
    assert "alone, and this tool knows whole blocks" in capsys.readouterr().err


def test_what_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "config.json"
    cases = {
        "n_heads_in_group = 4": {"attention": {"n_heads_in_group": 4, "no_op": False}, "ffn": {"no_op": False}},
        "intermediate_size = 48": {"attention": {"no_op": False}, "ffn": {"no_op": False, "intermediate_size": 48}},
        "replace_with_linear": {"attention": {"replace_with_linear": True}, "ffn": {"no_op": False}},
        "no attention with a no_op": {"ffn": {"no_op": True}},
        "has no ffn": {"attention": {"no_op": True}, "ffn": {"no_op": "yes"}},
    }
    for message, block in cases.items():
        path.write_text(json.dumps({"block_configs": [block] * 4}))
        with pytest.raises(PlanError, match=message):
            plan_of_config(path, lambda: tiny_model("llama"))
    path.write_text(json.dumps({"block_configs": decilm()["block_configs"] * 2}))
    with pytest.raises(PlanError, match="has 8 blocks, the model 4"):
        plan_of_config(path, lambda: tiny_model("llama"))
    path.write_text(json.dumps({"block_configs": "none"}))
    with pytest.raises(PlanError, match="no list"):
        plan_of_config(path, lambda: tiny_model("llama"))
    path.write_text("{}")
    assert plan_of_config(path, lambda: tiny_model("llama")) is None


def test_a_plan_is_printed_without_an_output(tmp_path, capsys):
    plan_of("block.3", "block.5").save(tmp_path / "prune_plan.json")
    assert main(["export", str(tmp_path), "--format", "llama-quantize"]) == 0
    assert capsys.readouterr().out == "--prune-layers 3,5\n"
    assert main(["export", str(tmp_path), "--format", "vllm"]) == 2
    assert "--output FOLDER" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "mergekit", "--push_to_hub", "user/name"]) == 2
    assert "mergekit is of a plan alone, and takes no push_to_hub" in capsys.readouterr().err
