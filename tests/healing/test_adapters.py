"""Adapters of the user's own beside pruning: kept whole in checkpoints, resumed and reloaded to the bit, or refused."""

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_prune.callbacks import SublayerPruneCallback
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import lit_prune
from lit_prune import LitCausalLM
from lit_prune.anatomy import find_sublayers, language_model
from lit_prune.errors import LitPruneError, ModelError
from lit_prune.export import save
from lit_prune.surgery import removed_sublayers
from lit_prune.training import restore_structure, structure_of
from tests.tiny import tiny_model

LINEAR = ["q_proj", "v_proj", "down_proj"]
SQUARE = ["q_proj", "o_proj"]
SLOW = pytest.mark.slow
KINDS = {
    "LoRA": lambda: peft.LoraConfig(r=4, target_modules="all-linear"),
    "LoRA, rsLoRA": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, use_rslora=True),
    "LoRA, alpha_pattern": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, alpha_pattern={"q_proj": 32}),
    "LoRA, rank_pattern": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, rank_pattern={"down_proj": 2}),
    "LoRA, some blocks": lambda: peft.LoraConfig(
        r=4, target_modules=LINEAR, layers_to_transform=[0, 2], layers_pattern="layers"
    ),
    "LoRA, dropout and pissa": lambda: peft.LoraConfig(
        r=4, target_modules=LINEAR, lora_dropout=0.1, init_lora_weights="pissa"
    ),
    "DoRA": lambda: peft.LoraConfig(r=4, target_modules=LINEAR, use_dora=True),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, target_modules=SQUARE),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=SQUARE),
    "LoHa": lambda: peft.LoHaConfig(r=4, target_modules=LINEAR),
    "LoKr": lambda: peft.LoKrConfig(r=4, target_modules=LINEAR),
}
NOT_BY_CONFIG = ("VeRA",)
"""What peft attaches around a model alone."""
CASES = [
    pytest.param(kind, by, id=f"{kind} by {by}", marks=() if (kind, by) in quick else SLOW)
    for quick in [{("LoRA, rsLoRA", "transformers"), ("DoRA", "peft"), ("IA3", "transformers"), ("VeRA", "peft")}]
    for kind in KINDS
    for by in ("peft", "transformers")
    if not (by == "transformers" and kind in NOT_BY_CONFIG)
]
GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [{"input_ids": torch.randint(3, 128, (12,), generator=GENERATOR)} for _ in range(4)]
BATCH = {"input_ids": torch.stack([each["input_ids"] for each in TEXTS])}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*already have a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
]


def adapted(kind, by):
    model = tiny_model("llama")
    torch.manual_seed(3)
    if by == "peft":
        return peft.get_peft_model(model, KINDS[kind]())
    model.add_adapter(KINDS[kind]())
    return model


def run(folder, module, ckpt_path=None):
    L.seed_everything(1, verbose=False)
    callback = SublayerPruneCallback(schedule=1, progress=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[callback, ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")],
    )
    trainer.fit(module, DataLoader(TEXTS, batch_size=2), DataLoader(TEXTS, batch_size=4), ckpt_path=ckpt_path)
    return callback.plan.removed


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=BATCH["input_ids"], use_cache=False).logits


@pytest.mark.parametrize(("kind", "by"), CASES)
def test_saved_resumed_and_reloaded_to_the_bit(tmp_path, kind, by):
    module = LitCausalLM(adapted(kind, by), learning_rate=1e-2)
    removed = run(tmp_path / "whole", module)
    weights = module.model.state_dict()
    again = LitCausalLM(adapted(kind, by), learning_rate=1e-2)
    assert run(tmp_path / "resumed", again, tmp_path / "whole/epoch=0.ckpt") == removed
    assert all(torch.equal(each, weights[name]) for name, each in again.model.state_dict().items())

    fresh = tiny_model("llama") if by == "transformers" else adapted(kind, by)
    read = LitCausalLM.load_from_checkpoint(tmp_path / "whole/epoch=1.ckpt", model=fresh)
    expected = logits(module.model)
    assert torch.equal(logits(read.model), expected)

    lit_prune.merge(read.model)
    inner = language_model(read.model)
    folder = save(inner, tmp_path / "merged")
    assert torch.allclose(logits(lit_prune.load(folder)), expected, atol=1e-4)
    assert set(removed_sublayers(inner)) == set(removed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_model_gets_them_by_their_config_or_is_told(kind):
    wrapped = adapted(kind, "peft")
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    inner, plain = language_model(wrapped), tiny_model("llama")
    assert find_sublayers(inner).num_parameters == plain.num_parameters(), "adapters do not count"
    record = {"lit_prune": structure_of(wrapped)}
    if kind in NOT_BY_CONFIG:
        with pytest.raises(ModelError, match="attach them as before"):
            restore_structure(plain, record)
        return
    restore_structure(plain, record)
    plain.load_state_dict(inner.state_dict())
    assert torch.equal(logits(plain), logits(inner))


def scaled(model):
    for each in model.modules():
        if hasattr(each, "scale_layer"):
            each.scale_layer(3.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: None,
        lambda model: model.set_adapter("other"),
        lambda model: model.base_model.set_adapter(["default", "other"]),
        lambda model: model.merge_adapter(),
        lambda model: model.base_model.disable_adapter_layers(),
        scaled,
    ],
    ids=["first", "second", "both", "merged", "off", "scaled"],
)
@pytest.mark.parametrize("into", ["plain", "adapted"])
def test_two_adapters_come_back_as_they_were_switched(into, change):
    def two():
        model = adapted("LoRA, rsLoRA", "peft")
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=SQUARE, init_lora_weights=False))
        return model

    model = two()
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 if "lora_B" in name else 0
    change(model)
    found = tiny_model("llama") if into == "plain" else two()
    restore_structure(found, {"lit_prune": structure_of(model)})
    language_model(found).load_state_dict(language_model(model).state_dict())
    assert torch.equal(logits(found), logits(model))


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 4]},
        {"off": True},
        {"modules_to_save": ["lm_head"], "off": True},
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_whatever_was_trained_is_merged_and_saved(tmp_path, architecture, options):
    off = options.get("off", False)
    settings = {name: each for name, each in options.items() if name != "off"}
    model = tiny_model(architecture)
    size = model.num_parameters()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], **settings))
    assert find_sublayers(model).num_parameters == size
    for parameter in wrapped.parameters():
        parameter.data += 0.1 if parameter.requires_grad else 0
    if off:
        wrapped.base_model.disable_adapter_layers()
    expected = logits(wrapped)
    lit_prune.merge(wrapped)
    assert not any("peft" in type(each).__module__ for each in model.modules())
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4)


@pytest.mark.parametrize(
    "switches", [[], {"lm_head": 5}, {"..": {"active": ["a"], "off": False, "merged": [], "scaling": {}}}]
)
def test_switches_of_strangers_are_refused(switches):
    with pytest.raises(ModelError, match="damaged"):
        restore_structure(
            tiny_model("llama"), {"lit_prune": {"removed": [], "lora": None, "adapters": [], "switches": switches}}
        )


def test_others_of_the_same_name_are_told():
    model = adapted("LoRA", "transformers")
    record = {"lit_prune": structure_of(adapted("LoRA, rsLoRA", "transformers"))}
    with pytest.raises(ModelError, match=r"made with target_modules=\['down_proj', 'q_proj', 'v_proj'\]"):
        restore_structure(model, record)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "NONE"},
        {"peft_type": "LORA", "target_modules": ["q_proj"], "megatron_config": {"a": 1}, "megatron_core": "os"},
        {"peft_type": "LORA", "target_modules": ["q_proj"], "no_such_option": 1},
        {"peft_type": "LORA", "target_modules": ["q_proj"], "r": -1},
        {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 10**14},
        {"peft_type": "LORA", "target_modules": "("},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
        {},
    ],
)
def test_records_of_strangers_are_refused(settings):
    each = {"path": "", "name": "default", "config": settings, "by_transformers": False}
    record = {"lit_prune": {"removed": [], "lora": None, "adapters": [each]}}
    with pytest.raises(LitPruneError, match="the checkpoint has"):
        restore_structure(tiny_model("llama"), record)
    record["lit_prune"]["adapters"] = [{**each, "config": 5}]
    with pytest.raises(ModelError, match="damaged"):
        restore_structure(tiny_model("llama"), record)


def test_a_model_that_was_left_with_adapters_of_its_healing_says_so_and_is_merged(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stopped")

    module = LitCausalLM(tiny_model("llama"), learning_rate=1e-2)
    callback = SublayerPruneCallback(schedule=1, healing=True, progress=False)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback, Stop()], **options)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(module, DataLoader(TEXTS), DataLoader(TEXTS))
    expected = logits(module.model)
    with pytest.raises(ModelError, match=r"lit_prune\.merge\(model\)"):
        module.model.save_pretrained(tmp_path)
    lit_prune.merge(module.model)
    module.model.save_pretrained(tmp_path)
    assert torch.allclose(logits(lit_prune.load(tmp_path)), expected, atol=1e-5)
