"""A conversation on the command line, beside transformers' own `generate`."""

import io

import pytest
import torch

from lit_prune import load
from lit_prune.__main__ import main
from tests.tiny import character_tokenizer, tiny_model

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NEW_TOKENS = 12


@pytest.fixture
def talk(folder, monkeypatch, capsys):
    """Types lines to the verb, and returns what was printed behind each prompt."""

    def talk(lines, *arguments, model=folder):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", model, f"--max_new_tokens={NEW_TOKENS}", "--device=cpu", *arguments]) == 0
        shown = capsys.readouterr()
        return [part.partition("\n")[::2] for part in shown.out.split("> ")[1:]], shown.err

    return talk


def written(model, text):
    """What a model greedily writes behind a text, by hand."""
    tokenizer = character_tokenizer()
    ids = tokenizer(text, return_tensors="pt").input_ids
    found = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=1)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_what_was_said_belongs_to_the_next_prompt_until_a_new_beginning(folder, talk):
    model = load(folder)
    first = written(model, "how are you?")
    second = written(model, f"how are you?\n\n{first}\n\nand now?")
    alone = written(model, "and now?")
    assert len({first, second, alone}) == 3
    turns, errors = talk(["how are you?", "and now?", "", "/nwe", "/new", "and now?", "/exit", "never said"])
    assert [(prompt, answer.strip()) for prompt, answer in turns] == [
        ("how are you?", first), ("and now?", second), ("", ""), ("/nwe", ""), ("/new", ""), ("and now?", alone),
        ("/exit", ""),
    ]  # fmt: skip
    assert "there is no /nwe" in errors


def test_two_models_answer_by_the_chat_template_each_with_its_own_past(folder, tmp_path, talk):
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    names = {"first": str(tmp_path / "first"), "second": str(tmp_path / "second")}
    models = {"first": tiny_model("llama", seed=1), "second": tiny_model("llama", seed=2)}
    for name, model in models.items():
        model.save_pretrained(names[name])
        tokenizer.save_pretrained(names[name])
    turns, _ = talk(["hi", "so?"], "--against", names["second"], model=names["first"])
    expected = []
    said = dict.fromkeys(names, "")
    for prompt in ("hi", "so?"):
        lines = []
        for name in ("second", "first"):
            said[name] += f"[user] {prompt}\n"
            answer = written(models[name], f"{said[name]}[assistant] ")
            said[name] += f"[assistant] {answer}\n"
            lines += [f"[{names[name]}]", *answer.splitlines()]
        expected.append((prompt, " ".join(" ".join(lines).split())))
    assert [(prompt, " ".join(answer.split())) for prompt, answer in turns[:2]] == expected


def test_the_oldest_turns_are_forgotten_where_there_is_no_room(folder, talk):
    prompts = ["a" * 60, "b" * 60, "c" * 60]
    turns, _ = talk(prompts)
    model = load(folder)  # of 128 positions, with a token a character
    answer = turns[1][1].strip()
    assert answer == written(model, prompts[1])
    assert turns[2][1].strip() == written(model, prompts[2])


def test_a_prompt_that_is_too_long_is_told_and_forgotten(folder, talk):
    turns, errors = talk(["x" * 120, "how?"])
    assert "the prompt has 120 tokens" in errors
    assert "room for 116" in errors
    assert turns[1][1].strip() == written(load(folder), "how?")


def test_sampling_follows_the_seed(talk):
    first, again, other = (
        talk(["how?"], "--temperature=2", f"--seed={seed}")[0][0][1] for seed in (1, 1, 2)
    )  # fmt: skip
    assert first == again != other
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert talk(["how?"], "--temperature=2", "--seed=1")[0][0][1] == first
