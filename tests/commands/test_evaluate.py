import json
import math
import statistics

import pytest
import torch

import lit_prune
from lit_prune.__main__ import main
from lit_prune.data import token_windows
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Measured, TaskScore, TokenLoss, answer, chosen_tasks, perplexity
from lit_prune.files import file_name
from lit_prune.report import evaluation_markdown
from tests import naive
from tests.tiny import tiny_model

TOKENS = torch.randint(3, 128, (6, 20), generator=torch.Generator().manual_seed(1))


def test_the_error_is_that_of_the_mean_over_windows():
    model = tiny_model("llama")
    losses = [naive.mean_loss(model, [{"input_ids": row[None]}]) for row in TOKENS]
    found = perplexity(model, [{"input_ids": TOKENS[:4]}, {"input_ids": TOKENS[4:]}])
    assert found.nll == pytest.approx(statistics.mean(losses), abs=1e-5)
    assert found.error == pytest.approx(statistics.stdev(losses) / math.sqrt(6), abs=1e-5)
    assert perplexity(model, [{"input_ids": TOKENS[:1]}]).error == 0


def test_models_stand_beside_their_reference(model_folder, text, tmp_path, tokenizer, capsys):
    pruned = tmp_path / "pruned"
    options = ["--data", str(text), "--window", "16", "--num_windows", "4", "--device", "cpu"]
    assert main(["prune", str(model_folder), "--output", str(pruned), "--amount", "0.3", *options]) == 0
    capsys.readouterr()
    shown = ["--texts", f"[{text}]", "--window", "16", "--num_windows", "1000", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(pruned), "--against", str(model_folder), "--device", "cpu", *shown]) == 0
    windows = token_windows([text.read_text()], tokenizer, 16)
    data = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [each["model"] for each in data["models"]] == [str(model_folder), str(pruned)]
    assert data["settings"]["against"] == str(model_folder)
    for each in data["models"]:
        model = lit_prune.load(each["model"])
        expected = naive.mean_loss(model, [{"input_ids": windows}])
        assert each["perplexities"]["text"]["nll"] == pytest.approx(expected, abs=1e-4)
        assert each["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    page = (tmp_path / "out/evaluation.md").read_text()
    assert page in capsys.readouterr().out
    assert "%)" in page.splitlines()[3]


def test_a_stride_gives_every_token_a_long_context(folder, text, tmp_path, tokenizer):
    shown = ["--texts", f"[{text}]", "--window", "16", "--stride", "4", "--num_windows", "1000", "--device", "cpu"]
    assert main(["evaluate", folder, *shown, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())["models"][0]["perplexities"]["text"]
    model, ids = lit_prune.load(folder), torch.tensor([tokenizer(text.read_text()).input_ids])
    losses = []
    for begin in range(0, ids.shape[1] - 15, 4):
        with torch.no_grad():
            logits = model(ids[:, begin : begin + 16]).logits[0]
        losses += [logits[place - 1].log_softmax(-1)[ids[0, begin + place]].neg().item() for place in range(12, 16)]
    assert found["num_tokens"] == len(losses)
    assert found["nll"] == pytest.approx(statistics.mean(losses), abs=1e-5)
    assert "of which the last 4 count" in (tmp_path / "out/evaluation.md").read_text()


def test_the_text_of_rows_is_under_the_key_that_is_named(folder, text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"content": text.read_text(), "text": "another"}))
    options = ["--window", "16", "--device", "cpu", "--output"]
    rows = ["--texts", f"[{tmp_path / 'rows.jsonl'}]", "--data_field", "content"]
    assert main(["evaluate", folder, *rows, *options, str(tmp_path / "one")]) == 0
    assert main(["evaluate", folder, "--texts", f"[{text}]", *options, str(tmp_path / "other")]) == 0
    one, other = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "other"))
    assert one["models"][0]["perplexities"]["rows"] == other["models"][0]["perplexities"]["text"]
    assert one["settings"]["data_field"] == "content"


def test_only_differences_beyond_their_error_are_bold():
    def measured(name, nll, value):
        return Measured(name, 1, {"text": TokenLoss(nll, 10, 5, 3, 0.01)}, {"piqa": TaskScore("acc", value, 0.02)})

    rows = [measured("dense", 3.0, 0.5), measured("near", 3.02, 0.46), measured("far", 3.1, 0.4)]
    near, far = evaluation_markdown(rows, compared=True).splitlines()[3:]
    assert near == "| near | 1 | 20.49 (+2.0%) | 46.0% ± 2.0% (-4.0) |"
    assert far == "| far | 1 | **22.20 (+10.5%)** | **40.0% ± 2.0% (-10.0)** |"
    assert "(" not in "".join(evaluation_markdown(rows, compared=False).splitlines()[2:])


def test_models_that_saw_the_same_windows_are_compared_window_by_window():
    def measured(name, sums, items, windows="b1"):
        ppl = TokenLoss(sum(sums) / 40, 40, 4, 11, 0.3, sums, (10, 10, 10, 10), windows)
        return Measured(name, 1, {"text": ppl}, {"piqa": TaskScore("acc", sum(items) / 10, 0.2, items)})

    sums, worse = (20.0, 40.0, 15.0, 35.0), (21.0, 42.0, 16.1, 36.3)
    items, fewer = (1, 1, 1, 1, 1, 1, 1, 1, 0, 0), (1, 1, 1, 0, 0, 0, 0, 0, 0, 0)
    rows = [measured("dense", sums, items), measured("pruned", worse, fewer), measured("other", worse, fewer[:9], "c2")]
    apart = [after - before for before, after in zip(sums, worse, strict=True)]
    assert rows[1].perplexities["text"].error_of_rise(rows[0].perplexities["text"]) == pytest.approx(
        statistics.stdev(apart) / 10 / math.sqrt(4)
    )
    pruned, other = evaluation_markdown(rows, compared=True).splitlines()[3:]
    assert pruned == "| pruned | 1 | **17.90 (+14.5%)** | **30.0% ± 20.0% (-50.0)** |"
    assert other == "| other | 1 | 17.90 (+14.5%) | 30.0% ± 20.0% (-50.0) |", "on other windows and items: apart"


def test_what_cannot_be_measured_is_one_line(model_folder, tmp_path, capsys):
    assert main(["evaluate", " , "]) == 2
    assert main(["evaluate", str(model_folder), "--texts", "[builtin, builtin]"]) == 2
    error = capsys.readouterr().err
    assert "name at least one model" in error
    assert "two texts to measure on would have one name: builtin, builtin" in error


def test_models_answer_the_same_questions(folder, tmp_path, text):
    pruned, out = tmp_path / "pruned", tmp_path / "out"
    options = ["--data", str(text), "--window", "16", "--num_windows", "4", "--device", "cpu"]
    assert main(["prune", folder, "--output", str(pruned), "--amount", "0.3", *options]) == 0
    (tmp_path / "questions.jsonl").write_text('{"question_id": 81, "turns": ["Hello", "Why"]}\n{"instruction": "Go"}\n')
    asked = ["--prompts", str(tmp_path / "questions.jsonl"), "--max_new_tokens", "6", "--output", str(out)]
    shown = ["--texts", f"[{text}]", "--window", "16", "--device", "cpu"]
    assert main(["evaluate", str(pruned), "--against", folder, *asked, *shown]) == 0
    data = json.loads((out / "evaluation.json").read_text())
    assert [each["id"] for each in data["answers"]] == [81, 2]
    assert data["signs"][str(pruned)]["agreement"] < 1
    assert data["signs"][folder]["agreement"] is None
    for name in (folder, str(pruned)):
        model, tokenizer = lit_prune.load(name), lit_prune.load_tokenizer(name)
        expected = [answer(model, tokenizer, question, max_new_tokens=6) for question in ("Hello", "Go")]
        assert [each["answers"][name][0] for each in data["answers"]] == expected
        assert [len(each["answers"][name]) for each in data["answers"]] == [2, 1]
        judged = (out / "model_answer" / f"{file_name(name)}.jsonl").read_text().splitlines()
        assert [json.loads(line)["choices"][0]["turns"][0] for line in judged] == expected
        outputs = json.loads((out / "alpaca_eval" / f"{file_name(name)}.json").read_text())
        assert [each["output"] for each in outputs] == expected
    assert "same next token" in (out / "evaluation.md").read_text()
    assert "## 81" in (out / "answers.md").read_text()


def test_prompts_without_a_place_for_answers_are_refused(folder, tmp_path, capsys):
    (tmp_path / "questions.txt").write_text("how?")
    assert main(["evaluate", folder, "--prompts", str(tmp_path / "questions.txt")]) == 2
    assert "--output" in capsys.readouterr().err


OWN_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def test_presets_take_the_tasks_of_a_folder(tmp_path):
    pytest.importorskip("lm_eval")
    for name in ("piqa_local", "arc_easy", "other"):
        (tmp_path / f"{name}.yaml").write_text(OWN_TASK.format(name=name, data=tmp_path / "data.jsonl"))
    found, left_out = chosen_tasks(["paper", "other"], str(tmp_path))
    assert found == ["piqa_local", "arc_easy", "other"]
    assert [each.split(" ")[0] for each in left_out] == ["winogrande", "hellaswag", "arc_challenge"]
    whole, nothing = chosen_tasks(["paper"])
    assert (whole, nothing) == (["piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"], [])
    hard, without = chosen_tasks(["hard"])
    assert "humaneval" not in hard
    assert "run_code" in without[0]
    assert "humaneval" in chosen_tasks(["hard"], run_code=True)[0]
    with pytest.raises(LitPruneError, match="run_code"):
        chosen_tasks(["humaneval"])
    with pytest.raises(LitPruneError, match="no task 'nope'"):
        chosen_tasks(["nope"])
