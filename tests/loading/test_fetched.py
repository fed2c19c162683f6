"""Plans by their address, from servers that are stood in for: no more is read than may be."""

import io
from pathlib import Path
from urllib.error import HTTPError

import pytest

from lit_prune.errors import PlanError
from lit_prune.loading import fetched
from lit_prune.loading.fetched import local_plan


class Answer(io.BytesIO):
    """A file of a server that counts what is read of it."""

    def __init__(self, content, url):
        super().__init__(content)
        self.url, self.taken = url, 0

    def read(self, size=-1):
        part = super().read(size)
        self.taken += len(part)
        return part


@pytest.fixture
def web(monkeypatch):
    """Files by their address on servers of the web and on the Hub; what was asked for is kept."""
    files, asked = {}, []

    def answer(address):
        asked.append(address)
        if address not in files:
            raise HTTPError(address, 404, "Not Found", None, None)
        content = files[address]
        return content if isinstance(content, Answer) else Answer(content, address)

    class Hub:
        def open(self, address, mode):
            try:
                return answer(address)
            except HTTPError as error:
                raise FileNotFoundError(address) from error

    monkeypatch.setattr(fetched, "urlopen", lambda request, timeout: answer(request.full_url))
    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    return files, asked


def placed(name, most=100):
    with local_plan(name, "changes.safetensors", lambda: most) as place:
        return {file.name: file.read_bytes() for file in Path(place).iterdir()}


def test_what_is_here_is_itself(tmp_path, web):
    for name in (str(tmp_path), "pruned", "C:/pruned", "../x/prune_plan.json"):
        with local_plan(name, "changes.safetensors", lambda: 0) as place:
            assert place == name
    assert web[1] == []


@pytest.mark.parametrize(
    ("name", "plan", "changes"),
    [
        ("https://a.org/b/prune_plan.json", "https://a.org/b/prune_plan.json", "https://a.org/b/changes.safetensors"),
        ("https://a.org/b/", "https://a.org/b/prune_plan.json", "https://a.org/b/changes.safetensors"),
        ("https://a.org/b?c=1", "https://a.org/b/prune_plan.json?c=1", "https://a.org/b/changes.safetensors?c=1"),
        ("hf://me/it", "hf://me/it/prune_plan.json", "hf://me/it/changes.safetensors"),
        ("hf://me/it@v1/in/p.json", "hf://me/it@v1/in/p.json", "hf://me/it@v1/in/changes.safetensors"),
    ],
)
def test_plan_and_changes_are_fetched(web, name, plan, changes):
    files, asked = web
    files |= {plan: b"plan"}
    assert placed(name) == {"prune_plan.json": b"plan"}
    files |= {changes: b"changes"}
    assert placed(name) == {"prune_plan.json": b"plan", "changes.safetensors": b"changes"}
    assert asked == [plan, changes] * 2


def test_what_is_too_large_is_not_read_to_its_end(web):
    endless = Answer(bytes(8 << 20), "https://a.org/changes.safetensors")
    web[0].update({"https://a.org/prune_plan.json": b"plan", "https://a.org/changes.safetensors": endless})
    with pytest.raises(PlanError, match="more than 100 bytes"):
        placed("https://a.org/prune_plan.json")
    assert endless.taken <= fetched.AT_A_TIME
    web[0]["https://a.org/prune_plan.json"] = bytes(fetched.MOST_OF_PLAN + 1)
    with pytest.raises(PlanError, match="more than 16,777,216 bytes"):
        placed("https://a.org/prune_plan.json")


def test_other_places_are_refused(web):
    web[0]["https://a.org/prune_plan.json"] = Answer(b"plan", "http://b.org/prune_plan.json")
    with pytest.raises(PlanError, match="not encrypted"):
        placed("https://a.org/prune_plan.json")
    for name in ("http://a.org/prune_plan.json", "file:///etc/passwd", "ftp://a.org/x"):
        with pytest.raises(PlanError, match="is not fetched: expected"):
            placed(name)
    with pytest.raises(PlanError, match=r"there is no plan at https://a\.org/c/prune_plan\.json"):
        placed("https://a.org/c")
