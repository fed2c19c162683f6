"""Who loads a pruned folder gets the pruned model, or an error: never random weights, whatever loads it."""

import importlib
import json
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    modeling_utils,
    pipeline,
)

import lit_prune
from lit_prune import describe
from lit_prune.errors import AnatomyError
from lit_prune.export import export_model, save
from lit_prune.loading import autoload
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove
from tests.tiny import character_tokenizer, tiny_model

REMOVED = [SublayerId.parse(each) for each in ("attention.0", "mlp.1", "attention.2")]
WHOLE = [SublayerId.parse(each) for each in ("attention.1", "mlp.1")]
RECORDS = [{"removed": ["mlp.9"]}, {"biases": {"mlp.9": "fc"}}, {"removed": ["mlp.0"], "blocks": [0], "num_blocks": 2}]
SETS = {"hf": REMOVED, "hf-remote-code": REMOVED, "hf-stock": WHOLE}
TOKENS = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks
    pytest.mark.filterwarnings("ignore:copying from a non-meta parameter:UserWarning"),
]


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind, gone in SETS.items():
        model = tiny_model("llama")
        remove(model, gone)
        place = tmp_path_factory.mktemp("models") / kind
        made[kind] = export_model(model, place, format=kind, tokenizer=character_tokenizer())
    return made


@pytest.fixture(scope="module")
def folder(folders):
    return folders["hf"]


@pytest.fixture(scope="module")
def expected():
    model = tiny_model("llama")
    found = {}
    for kind, gone in SETS.items():
        with mute(model, gone):
            found[kind] = logits(model)
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Adapters that change nothing yet, whose base is to be filled in."""
    place = tmp_path_factory.mktemp("adapter")
    settings = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), settings).save_pretrained(place)
    return place


def with_accelerate(folder, adapter, **options):
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, **options)
    model.tie_weights()
    return load_checkpoint_and_dispatch(model, folder, device_map={"": "cpu"}).eval()


def with_peft(folder, adapter, loader=AutoPeftModelForCausalLM, **options):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(folder)}))
    return loader.from_pretrained(adapter, **options)


def with_disk(folder, adapter, **options):
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    number_of_blocks = AutoConfig.from_pretrained(folder).num_hidden_layers
    blocks = {f"model.layers.{number}": "disk" if number else "cpu" for number in range(number_of_blocks)}
    offload = {"device_map": places | blocks, "offload_folder": str(adapter / "offloaded")}
    return AutoModelForCausalLM.from_pretrained(folder, **offload, **options)


LOADERS = {
    "AutoModelForCausalLM": lambda folder, adapter, **o: AutoModelForCausalLM.from_pretrained(folder, **o),
    "stock class": lambda folder, adapter, **_: LlamaForCausalLM.from_pretrained(folder),
    "pipeline": lambda folder, adapter, **o: pipeline("text-generation", str(folder), **o).model,
    "device_map": with_disk,
    "peft": with_peft,
    "stock class of an adapter": lambda folder, adapter, **_: with_peft(folder, adapter, LlamaForCausalLM),
    "accelerate": with_accelerate,
    "lit_prune.load": lambda folder, adapter, **_: lit_prune.load(folder),
}
REFUSED = "size|shape"
"""The error of whoever builds what is gone: transformers' and accelerate's own, about each tensor."""


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("taught", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader(loader, taught, kind, folders, adapter, expected):
    trusted = {"trust_remote_code": True} if kind == "hf-remote-code" else {}
    knows = taught or kind == "hf-stock" or loader == "lit_prune.load"
    runs_code = kind == "hf-remote-code" and not loader.startswith("stock class")
    with autoload.teaching(taught):
        if knows or runs_code:
            found = logits(LOADERS[loader](folders[kind], adapter, **trusted))
            assert torch.allclose(found, expected[kind], atol=1e-5)
        else:
            with pytest.raises((RuntimeError, ValueError), match=REFUSED):
                LOADERS[loader](folders[kind], adapter, **trusted)


def test_where_lit_prune_was_never_imported(folder):
    program = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    for name in ("layers.{0, 2}.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight"):
        assert name in found.stderr


def test_tombstones_are_empty_tensors_under_the_names_of_the_dense_model(folder, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    dense, pruned = (load_file(each / "model.safetensors") for each in (tmp_path, folder))
    assert set(dense) == set(pruned)
    gone = {name for name, tensor in pruned.items() if not tensor.numel()}
    parts = ("layers.0.self_attn.", "layers.0.input_", "layers.2.self_attn.", "layers.2.input_")
    assert gone == {name for name in dense if any(part in name for part in (*parts, "s.1.mlp.", "s.1.post_att"))}


def test_tombstones_survive_being_saved_again(folder, tmp_path, expected):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert len([*(tmp_path / "again").glob("*.safetensors")]) > 1
    save(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), tmp_path / "third")
    for place in ("again", "third"):
        with autoload.teaching(False), pytest.raises(RuntimeError, match=REFUSED):
            AutoModelForCausalLM.from_pretrained(tmp_path / place)
        assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / place)), expected["hf"], atol=1e-5)


def test_folders_from_before_there_were_tombstones(folder, tmp_path, expected, caplog):
    shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns("*.sha256"))
    weights = tmp_path / "old/model.safetensors"
    save_file({key: each for key, each in load_file(weights).items() if each.numel()}, weights, {"format": "pt"})
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for model in (read, lit_prune.load(tmp_path / "old")):
        assert torch.allclose(logits(model), expected["hf"], atol=1e-5)
    assert "MISSING" not in caplog.text


def test_peft_by_names_passes_over_what_is_gone(folder):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"]))
    assert {name.split(".")[4] for name, _ in adapted.named_parameters() if "lora_A" in name} == {"1", "3"}


def test_other_heads_and_none(folder):
    body = AutoModel.from_pretrained(folder)
    assert type(body) is LlamaModel
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    ours = {name for name, _ in LlamaForCausalLM.from_pretrained(folder).model.named_parameters()}
    assert {name for name, _ in body.named_parameters()} == ours
    assert {name for name, _ in classifier.model.named_parameters()} == ours


def test_a_config_builds_what_it_records(folder):
    config = AutoConfig.from_pretrained(folder)
    wanted = {name: each.shape for name, each in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}
    for model in (AutoModelForCausalLM.from_config(config), LlamaForCausalLM(config)):
        assert type(model) is LlamaForCausalLM
        assert {name: each.shape for name, each in model.named_parameters()} == wanted


def test_a_described_model_and_its_body(tmp_path):
    model = tiny_model("llama")
    norms = {"attention_norms": ["input_layernorm"], "mlp_norms": ["post_attention_layernorm"]}
    describe(model, {"blocks": "model.layers", "attention": "self_attn", "mlp": ["mlp"], **norms})
    remove(model, REMOVED)
    save(model, tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))
    assert AutoModel.from_pretrained(tmp_path / "out").num_parameters() == model.model.num_parameters()


def test_a_dense_config_over_a_pruned_folder_is_an_error(folder):
    with pytest.raises(RuntimeError, match=REFUSED):
        AutoModelForCausalLM.from_pretrained(folder, config=tiny_model("llama").config)


@pytest.mark.parametrize("record", [["mlp.0"], *({"version": 1, "removed": [], **each} for each in RECORDS)])
def test_a_damaged_record_is_told(record):
    with pytest.raises(AnatomyError, match="newer lit-prune|damaged|names 1 blocks"):
        LlamaForCausalLM(LlamaConfig(**tiny_model("llama").config.to_dict(), lit_prune=record))


def test_a_dense_model_is_left_alone(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_it_can_be_switched_off_and_on_again(folder, expected):
    lit_prune.teach_loaders(False)
    try:
        with pytest.raises(RuntimeError, match=REFUSED):
            AutoModelForCausalLM.from_pretrained(folder)
        assert torch.allclose(logits(lit_prune.load(folder)), expected["hf"], atol=1e-5)
    finally:
        lit_prune.teach_loaders()
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(folder)), expected["hf"], atol=1e-5)


def test_threads_do_not_disturb_each_other(folder):
    refused, inside, tried = [], threading.Event(), threading.Event()

    def elsewhere():
        with autoload.teaching(False):
            inside.set()
            tried.wait(30)
            try:
                AutoModelForCausalLM.from_pretrained(folder)
            except RuntimeError as error:
                refused.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    inside.wait(30)
    AutoModelForCausalLM.from_pretrained(folder)
    tried.set()
    thread.join()
    assert len(refused) == 1


FAILS_ONCE = """
import importlib.machinery as machinery
execute = machinery.SourceFileLoader.exec_module
def once(self, module):
    machinery.SourceFileLoader.exec_module = execute
    raise ImportError("once")
import lit_prune, transformers
machinery.SourceFileLoader.exec_module = lambda self, module: (
    once(self, module) if module.__name__ == "transformers.modeling_utils" else execute(self, module))
try:
    import transformers.modeling_utils
except ImportError:
    pass
"""
IMPORTS = {
    "a probe": """
import lit_prune, importlib.util
for name in ("transformers.modeling_utils", "transformers", "transformers.modeling_utils"):
    assert importlib.util.find_spec(name)
import transformers""",
    "a failure": FAILS_ONCE,
    "behind transformers, and anew": """
import sys, transformers.modeling_utils, lit_prune
assert hasattr(transformers.PreTrainedModel.post_init, "_lit_prune_taught")
for name in [each for each in sys.modules if each.split(".")[0] in ("lit_prune", "transformers")]:
    del sys.modules[name]
import lit_prune, transformers""",
}


@pytest.mark.parametrize("order", IMPORTS.values(), ids=IMPORTS)
def test_the_order_of_imports_is_of_no_matter(order, folder):
    program = f"{order}\nprint(transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}).num_parameters())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) == AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def test_a_reload_is_taught_too():
    spec = importlib.util.find_spec(modeling_utils.__name__)
    finder = next(each for each in sys.meta_path if hasattr(each, autoload._TAUGHT))
    fresh = importlib.util.module_from_spec(
        finder.find_spec(spec.name, importlib.import_module("transformers").__path__)
    )
    fresh.__spec__.loader.exec_module(fresh)
    assert fresh is not modeling_utils
    assert hasattr(fresh.PreTrainedModel.post_init, autoload._TAUGHT)


def test_importing_is_light():
    program = "import lit_prune, sys; print('torch' in sys.modules or 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
