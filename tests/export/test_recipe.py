"""Recipes: the pruned model again, of the dense one and what differs, compared by a hash of our own making."""

import hashlib
import json
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lit_prune import HealingSettings, LoraHealing, PrunePlan, heal, load, merge, save
from lit_prune.__main__ import main
from lit_prune.errors import ModelError, PlanError
from lit_prune.export import CHANGES_FILE, export_model, rebuild, recipe_of
from lit_prune.export.differences import difference, with_difference
from lit_prune.pruning import apply_plan, prune
from tests.tiny import character_tokenizer, tiny_model

WINDOWS = torch.randint(3, 99, (4, 16), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": rows} for rows in WINDOWS.split(2)]
FIVE = {"llama": "lazy", "qwen2": "lazy", "gemma": "portfolio", "qwen3_moe": "lazy", "cohere": "portfolio"}
"""Plain, with tied weights and biases, with scaled embeddings, with experts, parallel."""


def hashes(model):
    """SHA-256 of every tensor in a state dict."""
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
        if tensor.numel()
    }


def pruned(architecture="llama", dtype=torch.float32, scorer="random", compensate="scale", **options):
    """A pruned model whose weights were changed, and its plan."""
    model = tiny_model(architecture).to(dtype)
    plan = prune(model, BATCHES, amount=0.25, scorer=scorer, compensate=compensate, progress=False, **options)
    return model, plan


def dense_of(architecture="llama", dtype=torch.float32):
    return tiny_model(architecture).to(dtype)


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.slow] * (name != "llama")) for name in FIVE]
)
def test_five_architectures_are_rebuilt_to_the_last_bit(architecture, tmp_path):
    model, plan = pruned(architecture, torch.bfloat16, "nri", "refit", search=FIVE[architecture])
    expected = hashes(model)
    dense = dense_of(architecture, torch.bfloat16)
    folder = export_model(model, tmp_path / "recipe", format="recipe", plan=plan, dense=dense)
    assert {file.name for file in folder.iterdir()} == {
        *("prune_plan.json", CHANGES_FILE, "README.md", "weights.sha256"),
    }
    again = dense_of(architecture, torch.bfloat16)
    assert rebuild(again, folder) == PrunePlan.load(folder)
    assert hashes(again) == expected
    save(again, tmp_path / "again", plan=plan)
    assert hashes(load(tmp_path / "again")) == expected
    changed = load_file(folder / CHANGES_FILE)
    before = dense_of(architecture, torch.bfloat16).state_dict()
    assert not set(changed) & {"model.embed_tokens.weight", "model.norm.weight"}
    # No tensor of the dense model is there, whole or compressed.
    for name, packed in changed.items():
        assert packed.numpy().tobytes() != before[name].view(torch.uint8).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_healed_model_is_rebuilt_where_every_linear_layer_has_changed(tmp_path):
    model, plan = pruned()
    settings = HealingSettings(tokens=96, validations=1, examined=0)
    heal(model, WINDOWS, WINDOWS[:2], lora=LoraHealing(rank=2), settings=settings, batch_size=2)
    merge(model)
    expected = hashes(model)
    folder = export_model(model, tmp_path / "recipe", format="recipe", plan=plan, dense=dense_of())
    again = dense_of()
    rebuild(again, folder)
    assert hashes(again) == expected
    assert len(load_file(folder / CHANGES_FILE)) > 10
    assert (folder / CHANGES_FILE).stat().st_size < 0.9 * sum(tensor.nbytes for tensor in model.state_dict().values())


def test_whole_blocks_and_new_biases(tmp_path):
    for number, options in enumerate(({"granularity": "block"}, {"compensate": "bias"})):
        model, plan = pruned(**options)
        expected = hashes(model)
        folder = export_model(model, tmp_path / str(number), format="recipe", plan=plan, dense=dense_of())
        again = dense_of()
        rebuild(again, folder)
        assert hashes(again) == expected
        assert bool(recipe_of(folder).biases) == ("compensate" in options)


def test_a_plan_without_changes_is_all_that_is_needed(tmp_path):
    model, plan = pruned(compensate="none")
    folder = export_model(model, tmp_path / "recipe", format="recipe", plan=plan, dense=dense_of())
    assert {file.name for file in folder.iterdir()} == {"prune_plan.json", "README.md", "weights.sha256"}
    again = dense_of()
    apply_plan(again, PrunePlan.load(folder))
    assert hashes(again) == hashes(model)
    assert recipe_of(folder) is None
    with pytest.raises(ModelError, match="changes no weights"):
        rebuild(dense_of(), folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_differences_are_exact_for_any_bits(dtype):
    size = 999
    bits = torch.randint(
        0, 256, (2, size * dtype.itemsize), dtype=torch.uint8
    )  # NaN, infinities, both zeros among them
    new, old = bits.view(dtype)
    packed = difference(new.view(3, 333), old.view(3, 333))
    assert torch.equal(with_difference(old.view(3, 333), packed).flatten().view(torch.uint8), bits[0])
    near = old.clone()
    near[0] = torch.nextafter(old[0], torch.tensor(torch.inf, dtype=dtype)) if dtype.itemsize > 2 else old[1]
    assert len(difference(near, old)) < size // 8


def test_what_unpacks_to_more_than_a_tensor_is_refused():
    old = torch.zeros(8)
    for bomb in (zlib.compress(bytes(1 << 20)), zlib.compress(bytes(31)), b"no deflate"):
        with pytest.raises(ModelError, match="another size|damaged"):
            with_difference(old, torch.frombuffer(bytearray(bomb), dtype=torch.uint8))


def test_other_models_and_damaged_files_are_refused(tmp_path):
    model, plan = pruned()
    folder = export_model(model, tmp_path / "recipe", format="recipe", plan=plan, dense=dense_of())
    other = tiny_model("llama", seed=1)
    before = hashes(other)
    with pytest.raises(ModelError, match="not the dense model of the recipe"):
        rebuild(other, folder)
    assert hashes(other) == before
    with pytest.raises(PlanError, match="model_type llama in the plan, mistral"):
        rebuild(tiny_model("mistral"), folder)
    file = folder / CHANGES_FILE
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    whole = load_file(file)
    first = next(iter(whole))
    (folder / "weights.sha256").unlink()
    cases = {
        "which the model does not have": ({**whole, "model.other": whole[first].clone()}, about),
        "is torch.float32": ({**whole, first: torch.zeros(4)}, about),
        "is not the model that it was made of": ({name: whole[name] for name in whole if name != first}, about),
        "no file of changes": (whole, {}),
        "upgrade it": (whole, {name: text.replace('"version": 1', '"version": 9') for name, text in about.items()}),
    }
    for message, (tensors, metadata) in cases.items():
        save_file(tensors, file, metadata)
        with pytest.raises(ModelError, match=message):
            rebuild(dense_of(), folder)
    file.write_bytes(b"{}")
    with pytest.raises(ModelError, match="damaged"):
        rebuild(dense_of(), folder)


def test_what_no_recipe_can_be_made_of_is_refused(tmp_path):
    model, plan = pruned(compensate="none")
    place = tmp_path / "recipe"
    with pytest.raises(ModelError, match="there is no plan"):
        export_model(model, place, format="recipe", dense=dense_of())
    with pytest.raises(ModelError, match="not in its plan"):
        export_model(model, place, format="recipe", plan=plan.__class__(plan.model), dense=dense_of())
    with pytest.raises(ModelError, match="dense model is not that of this one"):
        export_model(model, place, format="recipe", plan=plan, dense=dense_of(dtype=torch.bfloat16))
    assert not place.exists()


def test_a_large_plan_keeps_what_apply_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_prune.export.recipe.MUCH", 100)
    model, plan = pruned()
    folder = export_model(model, tmp_path / "recipe", format="recipe", plan=plan, dense=dense_of())
    light = PrunePlan.load(folder)
    assert [step.scores for step in light.steps] == [step.scores for step in plan.steps]
    assert not any(step.measured or step.screened or step.errors or step.margins for step in light.steps)
    rebuild(dense_of(), folder)


@pytest.mark.slow
def test_the_command_line_writes_a_recipe_and_rebuilds_of_it(tmp_path, capsys):
    dense, out, recipe, again = (str(tmp_path / name) for name in ("dense", "out", "recipe", "again"))
    tiny_model("llama").save_pretrained(dense)
    character_tokenizer().save_pretrained(dense)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
    options = [
        "--data",
        str(text),
        "--window",
        "32",
        "--num_windows",
        "4",
        "--refit.window=32",
        "--refit.num_windows=4",
    ]
    assert main(["prune", dense, "--amount", "0.2", "--output", out, *options]) == 0
    assert main(["export", out, "--format", "recipe", "--output", recipe]) == 0
    capsys.readouterr()
    assert main(["apply", recipe, dense, "--output", again]) == 0
    shown = capsys.readouterr().out
    assert recipe_of(recipe).rebuilt in shown
    assert "compensating" not in shown
    assert hashes(load(again)) == hashes(load(out))
    assert PrunePlan.load(again) == PrunePlan.load(out)
    # An option that asks for another model is heard.
    assert main(["apply", recipe, dense, "--output", str(tmp_path / "bare"), "--uncompensated", "true"]) == 0
    assert hashes(load(tmp_path / "bare")) != hashes(load(out))
    plain = hashes(load(dense))
    assert all(plain.get(name, value) == value for name, value in hashes(load(tmp_path / "bare")).items())
    tiny_model("llama", seed=1).save_pretrained(dense)
    assert main(["apply", recipe, dense, "--output", str(tmp_path / "wrong")]) == 2
    assert "not the dense model of the recipe" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
    assert json.loads((tmp_path / "recipe/prune_plan.json").read_text())["schema_version"] == 1
