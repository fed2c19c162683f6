"""The structure of a model from its config alone: what `load` builds, without values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BartConfig

from lit_prune.errors import ModelError
from lit_prune.loading.models import load, skeleton
from lit_prune.plan import SublayerId
from lit_prune.surgery import compact, remove
from tests.tiny import ARCHITECTURES, tiny_model


def shapes(model) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("removed", [(), ("attention.0", "mlp.2"), ("attention.1", "mlp.1", "mlp.3")])
def test_it_is_what_load_builds_and_reads_no_weights(
    architecture: str, removed: tuple[str, ...], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    remove(model, [SublayerId.parse(each) for each in removed])
    if "mlp.1" in removed:
        compact(model)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "config.json":
            path.unlink()
    before = torch.random.get_rng_state()
    bare = skeleton(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert type(bare) is type(loaded)
    assert not bare.training
    assert shapes(bare) == shapes(loaded)
    assert all(each.is_meta for each in bare.parameters())
    assert getattr(bare.config, "lit_prune", None) == getattr(loaded.config, "lit_prune", None)


def test_refusals_are_those_of_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        skeleton("/no/such/folder")
    with pytest.raises(ModelError, match="cannot load the config"):
        skeleton(tmp_path)
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"encoder-decoder \(bart\)"):
        skeleton(tmp_path)
    tiny_model("llama").config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "lit_prune": {"version": 2, "removed": []}}))
    with pytest.raises(ModelError, match="newer lit-prune"):
        skeleton(tmp_path)
