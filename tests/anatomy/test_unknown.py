"""Models that nobody has tried: of usual structure they work, of unusual structure once they are described in data."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from lit_prune import describe, load, prune
from lit_prune.__main__ import main
from lit_prune.anatomy import find_sublayers
from lit_prune.errors import AnatomyError
from lit_prune.export import save
from lit_prune.plan import SublayerId
from lit_prune.surgery import mute, remove
from tests.tiny import character_tokenizer

TOKENS = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(0))


class UsualConfig(PreTrainedConfig):
    model_type = "usual_of_the_test"
    hidden_size: int = 32
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    vocab_size: int = 100


class UnusualConfig(UsualConfig):
    model_type = "unusual_of_the_test"


class Attention(nn.Module):
    def __init__(self, config, layer_idx, *, returns_weights):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.returns_weights = returns_weights
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, cache=None):
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        seen, new = key.shape[-2], query.shape[-2]
        causal = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
        output = self.out(F.scaled_dot_product_attention(query, key, value, causal).transpose(1, 2).flatten(2))
        return (output, None) if self.returns_weights else output


class UsualBlock(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        width = config.hidden_size
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(config, layer_idx, returns_weights=True)
        self.network = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))

    def forward(self, hidden, cache=None):
        hidden = hidden + self.attention(self.input_layernorm(hidden), cache=cache)[0]
        return hidden + self.network(self.post_attention_layernorm(hidden))


class UnusualBlock(nn.Module):
    """One norm before and one behind the mixer, an FFN that is written out, and a tensor where others give a tuple."""

    def __init__(self, config, layer_idx):
        super().__init__()
        width = config.hidden_size
        self.norm_in, self.norm_out, self.norm_up = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Attention(config, layer_idx, returns_weights=False)
        self.up, self.bend, self.down = nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)

    def forward(self, hidden, cache=None):
        hidden = hidden + self.norm_out(self.mixer(self.norm_in(hidden), cache=cache))
        return hidden + self.down(self.bend(self.up(self.norm_up(hidden))))


LAYOUT = {
    "blocks": "trunk.stack",
    "attention": "mixer",
    "attention_norms": ["norm_in", "norm_out"],
    "norms_after": "norm_out",
    "attention_output": "tensor",
    "mlp": ["up", "bend", "down"],
    "mlp_norms": ["norm_up"],
}


CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


class TestModel(PreTrainedModel, GenerationMixin):
    __test__ = False
    config_class = UsualConfig
    block_class = UsualBlock

    def __init__(self, config):
        super().__init__(config)
        blocks = [self.block_class(config, number) for number in range(config.num_hidden_layers)]
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.trunk = nn.ModuleDict({"stack": nn.ModuleList(blocks)})
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, cache=None, past_key_values=None, use_cache=True, attention_mask=None, **_):
        cache = (cache or past_key_values or DynamicCache(config=self.config)) if use_cache else None
        hidden = self.embed(input_ids)
        for block in self.trunk["stack"]:
            hidden = block(hidden, cache=cache)
        return CausalLMOutputWithPast(logits=self.head(hidden), **{CACHE: cache})


class UnusualModel(TestModel):
    config_class = UnusualConfig
    block_class = UnusualBlock


for model_class in (TestModel, UnusualModel):
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)


def made(model_class):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(pad_token_id=0, eos_token_id=None))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def require_exact(model, attention, ffn):
    """Every sublayer, muted and removed, against a hook that zeroes the module whose output is added."""
    for block in range(3):
        for kind, name in (("attention", attention), ("mlp", ffn)):
            module = model.get_submodule(f"trunk.stack.{block}.{name}")
            handle = module.register_forward_hook(
                lambda _, __, output: (torch.zeros_like(output[0]), None) if isinstance(output, tuple) else output * 0
            )
            expected = logits(model)
            handle.remove()
            with mute(model, [SublayerId(block, kind)]):
                assert torch.equal(logits(model), expected)
            pruned = copy.deepcopy(model)
            remove(pruned, [SublayerId(block, kind)])
            assert torch.equal(logits(pruned), expected)
            options = {"max_new_tokens": 6, "do_sample": False}
            uncached = pruned.generate(TOKENS, use_cache=False, **options)
            assert torch.equal(pruned.generate(TOKENS, **options), uncached)


def test_a_usual_structure_works_without_a_change_of_code(tmp_path):
    model = made(TestModel)
    require_exact(model, "attention", "network")
    plan = prune(model, [{"input_ids": TOKENS}], amount=0.2, progress=False)
    loaded = load(save(model, tmp_path / "pruned", plan=plan))
    assert type(loaded) is TestModel
    assert torch.equal(logits(loaded), logits(model))


def test_an_unusual_structure_is_refused_with_what_was_found():
    with pytest.raises(AnatomyError, match=r"norm_in, norm_out, norm_up.*Children: norm_in \(LayerNorm\).*layout"):
        find_sublayers(made(UnusualModel))


def test_an_unusual_structure_works_after_being_described(tmp_path):
    model = made(UnusualModel)
    describe(model, LAYOUT)
    require_exact(model, "norm_out", "down")
    anatomy = find_sublayers(model)
    assert anatomy[SublayerId(0, "attention")].form == "sandwich"
    plan = prune(model, [{"input_ids": TOKENS}], amount=0.2, progress=False)
    loaded = load(save(model, tmp_path / "pruned", plan=plan))
    assert torch.equal(logits(loaded), logits(model))
    remove(loaded, [find_sublayers(loaded).sublayers[0].id])


def test_the_command_line_takes_the_description_as_a_file(tmp_path, capsys):
    made(UnusualModel).save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    arguments = ["--amount=0.1", "--window=16", "--num_windows=2"]
    assert main(["prune", str(tmp_path / "model"), f"--output={tmp_path / 'none'}", *arguments]) == 2
    assert "are not understood" in capsys.readouterr().err
    for number, (name, text) in enumerate({"a.yaml": yaml.safe_dump(LAYOUT), "a.json": json.dumps(LAYOUT)}.items()):
        (tmp_path / name).write_text(text)
        output = tmp_path / f"pruned{number}"
        layout = f"--layout={tmp_path / name}"
        assert main(["prune", str(tmp_path / "model"), f"--output={output}", layout, *arguments]) == 0
        assert find_sublayers(load(output)).removed
    again = tmp_path / "again"
    assert main(["apply", str(output), str(tmp_path / "model"), f"--output={again}", layout]) == 0
    assert find_sublayers(load(again)).removed == find_sublayers(load(output)).removed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atention": "mixer"}, "keys of attention_norms"),
        ({"attention": 3}, "attention must be a name"),
        ({"mlp": [1]}, "mlp must be names"),
        ({"attention_output": "list"}, "must be tuple or tensor"),
        ({"attention": "mixture"}, "names mixture, which it has not"),
        ({"attention_norms": ["norm_in"]}, "what becomes of norm_out"),
        ({"blocks": "trunk"}, "module lists found: trunk.stack with 3"),
    ],
)
def test_a_wrong_description_is_refused_and_forgotten(change, message):
    model = made(UnusualModel)
    with pytest.raises(AnatomyError, match=message):
        describe(model, {**LAYOUT, **change})
    assert not hasattr(model.config, "lit_prune")


@pytest.mark.parametrize(
    "change",
    [
        {"norms_after": []},
        {"attention_output": "tuple"},
        {"attention_norms": ["norm_in", "norm_out", "norm_up"], "mlp_norms": []},
    ],
)
def test_a_description_that_computes_something_else_is_found_out_before_anything_is_removed(change):
    model = made(UnusualModel)
    describe(model, {**LAYOUT, **change})
    before = logits(model)
    with pytest.raises(AnatomyError, match="not the block with its output zeroed"):
        prune(model, [{"input_ids": TOKENS}], amount=0.2, progress=False)
    assert torch.equal(logits(model), before)
