"""Dialogues: their forms, the template that writes them, what of them is an answer, the windows that they fill."""

from __future__ import annotations

import json

import pytest
import torch

from lit_prune.__main__ import main
from lit_prune.data import TextDataModule, calibration_batches, draw_windows, read_texts, share_out, token_windows
from lit_prune.errors import DataError
from lit_prune.evaluation import Prompt, alpaca_eval_outputs
from lit_prune.files import Dialogue
from lit_prune.measure import IGNORED
from lit_prune.plan import PrunePlan
from tests.tiny import character_tokenizer, tiny_model

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == "
    "'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}\n"
    "{% endif %}{% endfor %}"
)
# The reasoning of all but the last answer is left out; so the first answer is no answer that the model would give.
REASONING = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' and loop.last %}{% generation %}"
    "<think>.</think>{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
COUNTING = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Four."},
]


def chat(folder, *rows):
    path = folder / "chat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def fresh():
    return character_tokenizer(chat_template=CHATML)


def short(number):
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}!"}]}


@pytest.mark.parametrize("template", [CHATML, INST, REASONING])
def test_answers_are_those_that_transformers_marks(tmp_path, template):
    tokenizer = character_tokenizer(chat_template=template)
    wanted = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = wanted["input_ids"], torch.tensor(wanted["assistant_masks"])
    dialogues = read_texts(chat(tmp_path, {"messages": MESSAGES}))
    (batch,) = calibration_batches(token_windows(dialogues, tokenizer, len(ids), answers_only=True), 1)
    assert batch["input_ids"][0].tolist() == ids
    assert batch["labels"][0].tolist() == torch.where(mask == 1, torch.tensor(ids), IGNORED).tolist()
    (whole,) = calibration_batches(token_windows(dialogues, tokenizer, len(ids)), 1)
    assert whole["labels"].tolist() == whole["input_ids"].tolist() == [ids]


def test_prompts_and_completions_are_two_texts_and_an_end(tmp_path):
    tokenizer = character_tokenizer()
    documents = read_texts(chat(tmp_path, {"prompt": "ab", "completion": "c", "unrelated": None}))
    (row,) = token_windows(documents, tokenizer, 4, answers_only=True)
    ab, c, end = tokenizer("ab")["input_ids"], tokenizer("c")["input_ids"], [tokenizer.eos_token_id]
    assert row.tolist() == [*(~token for token in ab), *c, *end]


def test_forms_of_trl(tmp_path):
    talk = {"prompt": MESSAGES[:2], "completion": MESSAGES[2:3]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    asked = {"messages": [{"role": "user", "content": "hi", "tool_calls": None}], "tools": tools}
    first, second = read_texts(chat(tmp_path, talk, asked))
    assert first == Dialogue(tuple(MESSAGES[:3]))
    assert second == Dialogue(({"role": "user", "content": "hi"},), tuple(tools))
    seen = character_tokenizer(chat_template="{{ tools[0].function.name }}{{ 'tool_calls' in messages[0] }}")
    (row,) = token_windows([second], seen, 8)
    assert seen.decode(row) == "addFalse"


def test_rows_of_alpaca_and_of_answers_that_evaluate_writes(tmp_path):
    rows = [{"instruction": "Say", "input": given, "output": said} for given, said in [("", "a"), ("it", "b")]]
    answers = tmp_path / "answers.json"
    answers.write_text(alpaca_eval_outputs("model", [Prompt(1, ("Say",))], [["c"]]))
    found = [*read_texts(chat(tmp_path, *rows)), *read_texts(str(answers))]
    said = [tuple(message["content"] for message in dialogue.messages) for dialogue in found]
    assert said == [("Say", "a"), ("Say\n\nit", "b"), ("Say", "c")]
    assert [message["role"] for message in found[0].messages] == ["user", "assistant"]


def test_a_text_is_a_text_whatever_stands_beside_it(tmp_path):
    assert read_texts(chat(tmp_path, {"text": "a text", **short(1)})) == ["a text"]


def test_windows_begin_where_a_dialogue_does_and_no_more_is_tokenised(tmp_path):
    tokenizer = character_tokenizer(chat_template=CHATML)
    dialogues = read_texts(chat(tmp_path, *map(short, range(10, 40))))
    length = len(tokenizer.apply_chat_template(short(10)["messages"])["input_ids"])
    rows = token_windows(dialogues, tokenizer, length + 9)
    assert len(rows) == 15, "two dialogues each, the second one cut"
    for number, row in enumerate(rows):
        assert tokenizer.decode(row).startswith(f"<user>{10 + 2 * number}?<assistant>{10 + 2 * number}!</s><user>")
    written = []
    tokenizer.apply_chat_template = lambda messages, **_: written.append(messages) or "x" * length
    assert len(draw_windows(dialogues, tokenizer, window=length + 9, most=3, seed=0)) == 3
    assert len(written) == 6
    one, other = (
        draw_windows(dialogues, character_tokenizer(chat_template=CHATML), window=9, most=3, seed=s) for s in (0, 1)
    )
    assert not torch.equal(one, other)


def test_windows_without_an_answer_are_left_out(tmp_path):
    tokenizer = character_tokenizer(chat_template=CHATML)
    long = {"messages": [{"role": "user", "content": "?" * 40}, {"role": "assistant", "content": "!"}]}
    dialogues = read_texts(chat(tmp_path, long, short(11), long))
    (row,) = token_windows(dialogues, tokenizer, 24, answers_only=True)
    assert tokenizer.decode(torch.where(row < 0, ~row, row)).startswith("<user>11?")


def test_dialogues_are_shared_out_whole(tmp_path):
    dialogues = read_texts(chat(tmp_path, *map(short, range(10, 20))))
    parts = share_out(dialogues)
    assert sorted(str(each) for part in parts.values() for each in part) == sorted(map(str, dialogues))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "line 1: messages are a list of objects with `role` and `content`"),
        ({"messages": [{"content": "x"}]}, "line 1: messages are"),
        ({"messages": [{"role": "user", "content": 3}]}, "line 1: messages are"),
        (
            {"prompt": "x"},
            "line 1: expected .* or with messages, a prompt and a completion, or an .*; found the fields prompt",
        ),
        ({"instruction": "x", "input": 3, "output": "y"}, "an instruction and an output; found the fields instruction"),
        ({"messages": [{"role": "user", "content": ""}]}, "holds no text"),
    ],
)
def test_damage_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_texts(chat(tmp_path, row))


@pytest.mark.parametrize(
    ("template", "rows", "options", "message"),
    [
        (None, [short(1)], {}, "messages want a chat template"),
        (CHATML, [short(1), {"text": "x"}], {}, "1 dialogues and 1 texts stand in one source"),
        (CHATML, [short(1)], {"stride": 3}, "leave the stride out"),
        (CHATML, [short(1)], {"window": 99}, "1 documents fill no window of 99 tokens; give more"),
        (CHATML, [short(1)], {"window": 8, "answers_only": True}, "fill no window of 8 tokens with an answer in it"),
        (COUNTING, [short(1)], {"answers_only": True}, "does not tell where answers begin"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(tmp_path, template, rows, options, message):
    documents = read_texts(chat(tmp_path, *rows))
    with pytest.raises(DataError, match=message):
        draw_windows(
            documents, character_tokenizer(chat_template=template), **{"window": 4, "most": 1, "seed": 0, **options}
        )


def test_a_data_module_labels_answers(tmp_path):
    path, tokenizer = chat(tmp_path, *map(short, range(10, 40))), character_tokenizer(chat_template=CHATML)
    data = TextDataModule(path, tokenizer=tokenizer, window=24, batch_size=2, answers_only=True)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        said = tokenizer.decode(labels[labels != IGNORED])
        assert said == tokenizer.decode(ids).partition("<assistant>")[2] != ""
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join("word " * 20 for _ in range(30)))
    with pytest.raises(DataError, match="answers_only wants dialogues"):
        TextDataModule(plain, tokenizer=tokenizer, window=24, answers_only=True).setup("fit")


def test_pruned_refitted_and_healed_on_dialogues(tmp_path, capsys):
    folder, path = tmp_path / "tiny", chat(tmp_path, *map(short, range(10, 90)))
    tiny_model("llama").save_pretrained(folder)
    fresh().save_pretrained(folder)
    pruned, healed = str(tmp_path / "pruned"), str(tmp_path / "healed")
    text = f"--data {path} --answers_only true --window 24".split()
    refit = f"--refit.data {path} --refit.window 24 --refit.num_windows 8".split()
    few = ["--amount", "0.2", "--num_windows", "4", "--batch_size", "2", "--num_unseen", "2"]
    main(["prune", str(folder), "--output", pruned, *few, *text, *refit])
    plan = PrunePlan.load(pruned)
    assert plan.calibration["answers_only"]
    assert plan.compensation["name"] == "refit"
    main(["heal", pruned, "--output", healed, "--training.tokens", "200", "--val_windows", "2", *text])
    healing = PrunePlan.load(healed).healing
    assert healing["answers_only"]
    assert healing["data"] == [str(path)]
    assert main(["heal", pruned, "--output", str(tmp_path / "other"), *text, "--data", "builtin"]) == 2
    assert "answers_only wants dialogues" in capsys.readouterr().err
