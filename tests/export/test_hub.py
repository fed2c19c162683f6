"""Uploads to a Hub that is none: what is asked of it, and what is in the folders that it gets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file
from transformers.utils import hub as transformers_hub

from lit_prune.__main__ import main
from lit_prune.errors import ModelError
from lit_prune.export import export_model, hub
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove
from tests.export.test_gguf import byte_tokenizer, model_of
from tests.tiny import character_tokenizer, tiny_model


@dataclass
class Hub:
    """Keeps what it gets, as HfApi takes it."""

    known: bool = True
    full: bool = False
    private: bool | None = None
    files: dict = field(default_factory=dict)

    def __call__(self):
        return self

    def whoami(self):
        if not self.known:
            raise LocalTokenNotFoundError("no token")
        return {"name": "user"}

    def create_repo(self, repo_id, *, private=None, exist_ok, token=None):
        assert exist_ok
        self.private = private
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.full:
            raise HfHubHTTPError.__mro__[1]("no room")  # the HTTP client's own, as of a connection that fails
        self.files |= {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}

    def upload_file(self, *, repo_id, path_or_fileobj, path_in_repo):
        is_file = isinstance(path_or_fileobj, Path)
        self.files[path_in_repo] = path_or_fileobj.read_bytes() if is_file else path_or_fileobj

    def create_commit(self, *, repo_id, operations, **_):
        self.files |= {each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations}


@pytest.fixture
def remote(monkeypatch):
    found = Hub()
    monkeypatch.setattr(hub, "HfApi", found)
    return found


def pruned():
    model = tiny_model("llama")
    remove(model, [SublayerId.parse("mlp.1")])
    return model


def test_a_folder_goes_with_its_card(remote, tmp_path):
    folder = export_model(pruned(), tmp_path / "out", push_to_hub="user/small", private=True)
    assert remote.private
    assert remote.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert ModelCard(remote.files["README.md"].decode()).data.tags == ["lit-prune", "pruned"]


def test_a_file_goes_with_a_card(remote, tmp_path):
    file = export_model(
        model_of(["mlp.1"]), tmp_path / "a.gguf", format="gguf", tokenizer=byte_tokenizer(), push_to_hub="u/a"
    )
    assert remote.files["a.gguf"] == file.read_bytes()
    assert ModelCard(remote.files["README.md"].decode()).data.library_name == "gguf"
    assert "llama-server --hf-repo u/a --hf-file a.gguf" in remote.files["README.md"].decode()


def test_whoever_is_not_logged_in_is_told_so_before_any_work(remote, tmp_path, capsys):
    remote.known = False
    with pytest.raises(ModelError, match="hf auth login"):
        export_model(pruned(), tmp_path / "out", push_to_hub="user/small")
    with pytest.raises(ModelError, match="'a/b/c' is no name of a repository"):
        export_model(pruned(), tmp_path / "out", push_to_hub="a/b/c")
    folder = export_model(pruned(), tmp_path / "pruned", tokenizer=character_tokenizer())
    options = ["--format", "hf", "--output", str(tmp_path / "out"), "--push_to_hub", "user/small"]
    assert main(["export", str(folder), *options]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    remote.known = True
    assert main(["export", str(folder), *options]) == 0
    assert "uploaded: https://huggingface.co/user/small" in capsys.readouterr().out


def test_what_is_not_uploaded_stays(remote, tmp_path):
    remote.full = True
    with pytest.raises(ModelError, match=r"out is written, but not uploaded: no room; try `hf upload user/small"):
        export_model(pruned(), tmp_path / "out", push_to_hub="user/small")
    assert (tmp_path / "out/config.json").is_file()


def test_transformers_own_way_uploads_tombstones(remote, tmp_path, monkeypatch):
    if not hasattr(transformers_hub, "hf_api"):
        pytest.skip("a transformers that uploads by functions")
    monkeypatch.setattr(transformers_hub, "hf_api", remote)
    card = ModelCard("---\ntags: []\n---\n# Of the repository")
    monkeypatch.setattr(transformers_hub, "create_and_tag_model_card", lambda *_, **__: card)
    pruned().push_to_hub("user/small")
    for name, content in remote.files.items():
        (tmp_path / name).write_bytes(content)
    assert json.loads((tmp_path / "config.json").read_text())["lit_prune"]["removed"] == ["mlp.1"]
    assert load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].shape == torch.Size([64, 0])


def test_the_license_is_the_base_models(tmp_path):
    base = export_model(pruned(), tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n# Base")
    model = pruned()
    model.config.name_or_path = str(base)
    data = ModelCard((export_model(model, tmp_path / "out") / "README.md").read_text()).data
    assert (data.license, data.license_name, data.base_model) == ("other", "own", None)
    (base / "README.md").write_text("---\n: : [\n---\n")
    assert ModelCard((export_model(model, tmp_path / "two") / "README.md").read_text()).data.license is None
