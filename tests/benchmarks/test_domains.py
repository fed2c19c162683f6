"""Texts for the figures: from the hub, by a stand-in, the same as from a folder; no document is in both parts."""

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks.domains import main
from lit_prune.errors import DataError

WORDS = ("moon", "ship", "bird", "key")
HUB = {
    "EleutherAI/lambada_openai": [
        {"text": f"the {word} fell into the sea"} for word in ("moon", "ship", "bird", "key")
    ],
    "EleutherAI/wikitext_document_level": [
        {"page": f' = Lobster {n} = \n \n A lobster ( 12 @.@ 5 kg ) , a " big " one , isn \'t 60 @-@ odd . \n'}
        for n in range(4)
    ],
    "openai/gsm8k": [{"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}] * 4,
    "HuggingFaceH4/mt_bench_prompts": [{"prompt_id": 81, "category": "writing", "prompt": ["Write.", "Again."]}],
}
FOLDER = {
    "lambada": [
        {"context": f"the {word} fell into the", "continuation": "sea"} for word in ("moon", "ship", "bird", "key")
    ],
    "wikitext2_valid": [
        {"text": f'= Lobster {n} = \n \n A lobster (12.5 kg), a "big" one, isn\'t 60-odd.'} for n in range(4)
    ],
    "gsm8k": [{"question": "2 and 3?", "solution": "It is 2+3=5.", "answer": "5"}] * 4,
    "mt_bench_questions": [{"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}],
}


def written(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*.jsonl")}


def test_the_hub_gives_what_a_folder_gives(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, configuration, *, split):
        asked.append((path, configuration, split))
        return HUB[path]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (tmp_path / "source").mkdir()
    for name, rows in FOLDER.items():
        (tmp_path / f"source/{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    main([str(tmp_path / "hub")])
    main([str(tmp_path / "folder"), "--source", str(tmp_path / "source")])
    assert len(asked) == len(HUB)
    assert written(tmp_path / "hub") == written(tmp_path / "folder")
    lines = {str(path): text.splitlines() for path, text in written(tmp_path / "hub").items()}
    assert len(lines) == 13
    assert not {*lines["prose.jsonl"]} & {*lines["unseen/prose.jsonl"]}
    assert [json.loads(line)["text"] for line in lines["unseen/prose.jsonl"]] == [
        "the moon fell into the sea",
        "the key fell into the sea",
    ]
    assert json.loads(lines["questions.jsonl"][0])["turns"] == ["Write.", "Again."]


def test_without_what_reads_the_hub_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'lit-prune\[hub\]'"):
        main([str(tmp_path)])
    assert not [*tmp_path.iterdir()]
