"""Every export format against the muted dense model, through loaders that know nothing of lit_prune."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig

from lit_prune.__main__ import main
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export import decilm, export_model, remote_code, vllm, zeroed
from lit_prune.loading import autoload
from lit_prune.plan import SublayerId
from lit_prune.pruning import prune
from lit_prune.surgery import mute, remove
from tests.export.by_hand import decilm_logits
from tests.tiny import character_tokenizer, tiny_model
from tests.zoo import ZOO

TOKENS = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))
SETS = [["attention.0", "mlp.1", "attention.2", "mlp.2"], ["mlp.0", "mlp.3"], ["attention.0", "attention.1", "mlp.0"]]


def ids(names):
    return [SublayerId.parse(each) for each in names]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def pruned(architecture, names, **overrides):
    """A pruned model, and the logits of the dense one with the same sublayers muted."""
    model = tiny_model(architecture, **overrides)
    with mute(model, ids(names)):
        expected = logits(model)
    remove(model, ids(names))
    return model, expected


def loaded_elsewhere(folder, **options):
    """As where lit_prune is not imported."""
    factory = AutoModelForCausalLM
    with autoload.teaching(False):
        if type(AutoConfig.from_pretrained(folder)) not in AutoModelForCausalLM._model_mapping:
            factory = AutoModelForImageTextToText
        return factory.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("architecture", ZOO)
@pytest.mark.parametrize("format", ["hf-remote-code", "hf-zeroed"])
def test_every_architecture(architecture, format, tmp_path):
    model, expected = pruned(architecture, ["attention.0", "mlp.1", "attention.3", "mlp.3"])
    folder = export_model(model, tmp_path / "out", format=format)
    read = loaded_elsewhere(folder, trust_remote_code=format == "hf-remote-code")
    scale = max(1.0, float(expected.abs().max()))
    assert torch.allclose(logits(read), expected, atol=1e-5 * scale)
    if format == "hf-remote-code":
        assert read.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("names", SETS)
def test_remote_code_generates_with_a_cache(names, tmp_path):
    model, _ = pruned("llama", names)
    folder = export_model(model, tmp_path / "out", format="hf-remote-code", tokenizer=character_tokenizer())
    read = loaded_elsewhere(folder, trust_remote_code=True)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(read.generate(TOKENS, **options), model.generate(TOKENS, use_cache=False, **options))


def test_remote_code_in_a_process_that_has_no_lit_prune(tmp_path):
    model, expected = pruned("llama", SETS[0])
    folder = export_model(model, tmp_path / "out", format="hf-remote-code")
    program = f"""
import sys
sys.modules["lit_prune"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor({TOKENS.tolist()}), use_cache=False).logits, {str(tmp_path / "found")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert torch.allclose(torch.load(tmp_path / "found"), expected, atol=1e-5)


def test_remote_code_is_not_needed_where_lit_prune_is(tmp_path):
    model, expected = pruned("llama", SETS[0])
    folder = export_model(model, tmp_path / "out", format="hf-remote-code")
    for trusted in (True, False):
        read = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
        assert type(read) is type(model)
        assert set(find_sublayers(read).removed) == set(ids(SETS[0]))
        assert torch.allclose(logits(read), expected, atol=1e-5)
        again = export_model(read, tmp_path / f"again-{trusted}")
        assert "auto_map" not in json.loads((again / "config.json").read_text())


def test_remote_code_holds_the_biases_of_a_compensation(tmp_path):
    model = tiny_model("llama")
    prune(model, [{"input_ids": TOKENS}], amount=0.2, compensate="bias", progress=False)
    folder = export_model(model, tmp_path / "out", format="hf-remote-code")
    assert torch.allclose(logits(loaded_elsewhere(folder, trust_remote_code=True)), logits(model), atol=1e-5)


def test_remote_code_that_builds_something_else_is_not_written(tmp_path, monkeypatch):
    model, _ = pruned("llama", SETS[0])
    monkeypatch.setattr(remote_code, "gone_modules", lambda model: {})
    with pytest.raises(ModelError, match="read back"):
        export_model(model, tmp_path / "out", format="hf-remote-code")
    assert not [*tmp_path.iterdir()]
    assert getattr(model.config, "auto_map", None) is None


def test_a_zeroed_model_is_as_large_as_the_dense_one(tmp_path):
    model, _ = pruned("llama", SETS[0][:2])
    folder = export_model(model, tmp_path / "out", format="hf-zeroed")
    assert loaded_elsewhere(folder).num_parameters() == tiny_model("llama").num_parameters()
    card = (folder / "README.md").read_text()
    assert "neither smaller nor faster" in card


def test_a_zeroed_model_keeps_each_dtype(tmp_path):
    model, _ = pruned("llama", SETS[0])
    for parameter in model.parameters():  # as loaded in bfloat16: rotary tables stay in float32
        parameter.data = parameter.data.bfloat16()
    found = loaded_elsewhere(export_model(model, tmp_path / "out", format="hf-zeroed"), dtype="bfloat16")
    assert {name: each.dtype for name, each in found.named_buffers()} == {
        name: each.dtype for name, each in model.named_buffers() if each.numel()
    }
    assert torch.equal(logits(found), logits(model))


def test_zeros_that_do_not_hold_are_refused(tmp_path, monkeypatch):
    model, _ = pruned("llama", SETS[0])
    filled = zeroed.with_zeros(model)
    for part in ("input_layernorm", "self_attn.v_proj", "self_attn.o_proj"):
        filled.model.layers[0].get_submodule(part).weight.data += 1
    monkeypatch.setattr(zeroed, "with_zeros", lambda model: filled)
    with pytest.raises(ModelError, match="other logits"):
        export_model(model, tmp_path / "out", format="hf-zeroed")
    assert not [*tmp_path.iterdir()]


def test_stock(tmp_path):
    model, expected = pruned("llama", ["attention.1", "mlp.1"])
    folder = export_model(model, tmp_path / "out", format="hf-stock")
    read = loaded_elsewhere(folder)
    assert read.config.num_hidden_layers == 3
    assert torch.allclose(logits(read), expected, atol=1e-5)
    other, _ = pruned("llama", ["attention.1", "mlp.1", "mlp.2"])
    with pytest.raises(ModelError, match=r"would build mlp.2 again"):
        export_model(other, tmp_path / "other", format="hf-stock")


@pytest.mark.parametrize("names", [[], *SETS])
@pytest.mark.parametrize("tied", [True, False])
def test_vllm(names, tied, tmp_path):
    model, expected = pruned("llama", names, tie_word_embeddings=tied, head_dim=8)
    folder = export_model(model, tmp_path / "out", format="vllm", tokenizer=character_tokenizer())
    assert torch.allclose(decilm_logits(folder, TOKENS), expected, atol=1e-4)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert len(config.block_configs) == len(model.model.layers) - (1 if names == SETS[0] or names == SETS[2] else 0)
    assert config.block_configs[-1].ffn.no_op is (names == SETS[1])


@pytest.mark.parametrize("names", [[], *SETS])
@pytest.mark.parametrize("tied", [True, False])
def test_mlx(names, tied, tmp_path):
    model, expected = pruned("llama", names, tie_word_embeddings=tied, intermediate_size=264)
    folder = export_model(model, tmp_path / "out", format="mlx", tokenizer=character_tokenizer())
    assert torch.allclose(decilm_logits(folder, TOKENS), expected, atol=1e-4)
    assert json.loads((folder / "config.json").read_text())["block_configs"][-1]["ffn"]["no_op"] is (names == SETS[1])


@pytest.mark.parametrize(
    ("names", "overrides", "reason"),
    [
        (["mlp.1"], {"head_dim": 16}, "heads of 32 / 4 numbers, and this model's have 16"),
        ([f"attention.{block}" for block in range(4)], {}, "wants one attention at least"),
    ],
)
def test_what_mlx_does_not_compute_is_refused(names, overrides, reason, tmp_path):
    model, _ = pruned("llama", names, **overrides)
    with pytest.raises(ModelError, match=reason):
        export_model(model, tmp_path / "out", format="mlx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_vllm_by_a_file_that_counts_attentions(architecture, tmp_path):
    model, _ = pruned(architecture, SETS[0])
    folder = export_model(model, tmp_path / "out", format="vllm", tokenizer=character_tokenizer())
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 2
    assert [*config["auto_map"]] == ["AutoConfig", "AutoModel"]
    assert config["architectures"][0] not in dir(transformers), "vLLM would take its own class"
    with autoload.teaching(False):
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        read = AutoModel.from_pretrained(folder, trust_remote_code=True)
    indices = [layer.self_attn.layer_idx for layer in read.layers if hasattr(layer.self_attn, "q_proj")]
    assert indices == [0, 1]
    assert read.config.num_hidden_layers == len(read.layers) == 3
    with torch.no_grad():
        assert torch.allclose(read(TOKENS)[0], model.model(TOKENS)[0], atol=1e-5)


def test_vllm_folder_of_a_large_model_comes_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(decilm, "SHARD", "60KB")
    model, expected = pruned("llama", SETS[0], head_dim=8)
    folder = export_model(model, tmp_path / "out", format="vllm")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len([*folder.glob("*.safetensors")]) > 1
    assert torch.allclose(decilm_logits(folder, TOKENS), expected, atol=1e-4)


def test_vllm_folder_that_lacks_a_tensor_is_not_written(tmp_path, monkeypatch):
    model, _ = pruned("llama", SETS[0])
    tensors = vllm._tensors

    def fewer(*arguments):
        found = tensors(*arguments)
        found.pop("model.layers.1.self_attn.q_proj.weight")
        return found

    monkeypatch.setattr(vllm, "_tensors", fewer)
    with pytest.raises(ModelError, match=r"differs: model.layers.1.self_attn.q_proj"):
        export_model(model, tmp_path / "out", format="vllm")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("architecture", "overrides", "reason"),
    [
        ("gpt2", {}, "not (as )?gpt2; (export|write) as hf-zeroed"),
        ("mistral", {"sliding_window": 8}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "computes silu, not gelu"),
        ("llama", {"hidden_act": "relu"}, "computes silu, not relu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type dynamic are"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 3.0}},
            "does not read attention_factor = 3.0 of rotary",
        ),
    ],
)
@pytest.mark.parametrize("format", ["vllm", "mlx", "gguf"])
def test_what_cannot_be_served_is_refused(format, architecture, overrides, reason, tmp_path):
    model, _ = pruned(architecture, ["mlp.1"], **overrides)
    with pytest.raises(ModelError, match=reason):
        export_model(model, tmp_path / "out", format=format, tokenizer=character_tokenizer())
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("format", ["vllm", "gguf"])
def test_what_no_runtime_is_known_to_read_is_refused(format, tmp_path):
    @dataclasses.dataclass
    class Newer(LlamaConfig):
        """Of a transformers to come, say."""

        residual_multiplier: float = 1.0

    model, _ = pruned("llama", ["mlp.1"])
    model.config = Newer(**model.config.to_dict(), residual_multiplier=0.2)
    with pytest.raises(ModelError, match="does not read residual_multiplier = 0.2 of the config"):
        export_model(model, tmp_path / "out", format=format, tokenizer=character_tokenizer())
    own = type("Own", (type(model),), {"__module__": "a_module_that_came_with_it"})
    model.config.residual_multiplier, model.__class__ = 1.0, own
    with pytest.raises(ModelError, match="what Own of a_module_that_came_with_it does otherwise is not known"):
        export_model(model, tmp_path / "out", format=format, tokenizer=character_tokenizer())
    assert not [*tmp_path.iterdir()]


def test_unknown_formats_and_options_are_refused(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no export format; known are hf, hf-remote-code"):
        export_model(model, tmp_path / "out", format="onxx")
    with pytest.raises(ModelError, match="has no option weights"):
        export_model(model, tmp_path / "out", format="vllm", weights="f16")


def test_the_verb(tmp_path, capsys):
    model, expected = pruned("llama", SETS[1])
    folder = export_model(model, tmp_path / "pruned", tokenizer=character_tokenizer())
    out = tmp_path / "served"
    assert main(["export", str(folder), "--format", "vllm", "--output", str(out)]) == 0
    assert f"written: {out}" in capsys.readouterr().out
    assert torch.allclose(decilm_logits(out, TOKENS), expected, atol=1e-4)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    wrong = ["export", str(folder), "--format", "vllm", "--output", str(tmp_path / "no"), "--weights", "f16"]
    assert main(wrong) == 2
    assert "weights is for gguf" in capsys.readouterr().err


def test_transformers_that_skips_by_itself():
    """Ready for the transformers that leaves out what `per_layer_config` says; 5.23 builds it all the same."""
    model, expected = pruned("llama", ["attention.1", "mlp.2"])
    with autoload.teaching(False):
        built = AutoModelForCausalLM.from_config(type(model.config).from_dict(model.config.to_dict()))
    if built.num_parameters() != model.num_parameters():
        pytest.skip("this transformers builds skipped sublayers")
    built.load_state_dict(model.state_dict())
    assert torch.allclose(logits(built.eval()), expected, atol=1e-5)


class Logits(torch.nn.Module):
    """A pass without a cache, of tensors alone, as exporters want it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


SIZES = {"input_ids": {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("length", min=2, max=64)}}
OTHER_TOKENS = torch.randint(128, (3, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("names", SETS)
def test_torch_export_of_any_batch_and_length(names):
    model, _ = pruned("llama", names)
    with torch.no_grad():
        program = torch.export.export(Logits(model), (TOKENS,), dynamic_shapes=SIZES)
        assert torch.allclose(program.module()(OTHER_TOKENS), model(OTHER_TOKENS).logits, atol=1e-5)


@pytest.mark.parametrize("names", SETS)
def test_compiling_meets_no_graph_break(names):
    torch._dynamo.reset()  # what other tests compiled counts against a limit
    model, expected = pruned("llama", names)
    assert torch.allclose(logits(torch.compile(model, fullgraph=True, backend="eager")), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, _ = pruned("llama", SETS[0])
    with torch.no_grad():
        file = str(tmp_path / "model.onnx")
        torch.onnx.export(Logits(model).eval(), (TOKENS,), file, dynamo=True, dynamic_shapes=SIZES, verbose=False)
        found = runtime.InferenceSession(file).run(None, {"input_ids": OTHER_TOKENS.numpy()})[0]
        assert torch.allclose(torch.tensor(found), model(OTHER_TOKENS).logits, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_openvino():
    openvino = pytest.importorskip("openvino")
    model, _ = pruned("llama", SETS[0])
    with torch.no_grad():
        program = torch.export.export(Logits(model), (TOKENS,), dynamic_shapes=SIZES)
        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(openvino.convert_model(program), "CPU", precise)
        found = torch.tensor(compiled([OTHER_TOKENS.numpy()])[0])
        assert torch.allclose(found, model(OTHER_TOKENS).logits, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_quantising_afterwards():
    quantization = pytest.importorskip("torchao.quantization")
    model, expected = pruned("llama", SETS[0], hidden_size=64)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    error = (logits(model) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.1
    assert model.generate(TOKENS, max_new_tokens=5, min_new_tokens=5, do_sample=False).shape == (2, 17)
