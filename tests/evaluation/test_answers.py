"""Answers: greedy, the new text alone, template where there is one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lit_prune.commands.conversation import Conversation
from lit_prune.errors import ModelError
from lit_prune.evaluation import Prompt, answer, answers
from tests.tiny import VOCAB_SIZE, character_tokenizer, tiny_model

LETTERS = 100  # tokens that the tokenizer knows; the model has some more


def speaking(**options: Any) -> Any:
    """A model that writes only tokens which the tokenizer knows."""
    model: Any = tiny_model("llama", **options)
    with torch.no_grad():
        model.lm_head.weight[LETTERS:VOCAB_SIZE] = 0
    return model


def greedy(model: Any, prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == 1:
            break
    return tokens[len(prompt) :]


def test_continues_without_a_template(tokenizer: Any) -> None:
    model = speaking()
    expected = tokenizer.decode(greedy(model, tokenizer("Hello").input_ids, 12), skip_special_tokens=True).strip()
    assert answer(model, tokenizer, "Hello", max_new_tokens=12) == expected != ""


def test_puts_the_question_in_the_template() -> None:
    model, tokenizer = speaking(), character_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message.content }}]{% endfor %}A:"
    expected = tokenizer.decode(greedy(model, tokenizer("[Hello]A:").input_ids, 12), skip_special_tokens=True).strip()
    assert answer(model, tokenizer, "Hello", max_new_tokens=12) == expected != ""


def test_greedy_whatever_the_model_says_and_without_warnings(tokenizer: Any) -> None:
    model = speaking().train()
    expected = answer(model, tokenizer, "Hello", max_new_tokens=8)
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, top_k=3, top_p=0.5, eos_token_id=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {answer(model, tokenizer, "Hello", max_new_tokens=8) for _ in range(3)}
    assert found == {expected}
    assert model.training


PROMPTS = [Prompt(1, ("Hi",)), Prompt(2, ("What is it, then?", "And why?")), Prompt(3, ("Go on",))]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_batch_says_what_each_question_alone_would(tokenizer: Any, architecture: str) -> None:
    model = tiny_model(architecture)
    together = answers(model, tokenizer, PROMPTS, max_new_tokens=10, batch_size=3)
    for prompt, turns in zip(PROMPTS, together, strict=True):
        context = tokenizer(prompt.turns[0]).input_ids
        expected = greedy(model, context, 10)
        assert list(turns[0].context) == context
        assert list(turns[0].tokens) == [each for each in expected if each != 1]
        assert turns[0].ended == (expected[-1] == 1)


def test_a_second_turn_is_asked_behind_the_first_answer() -> None:
    model, tokenizer = speaking(), character_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}a:"
    first, second = answers(model, tokenizer, PROMPTS, max_new_tokens=6)[1]
    asked = f"u:What is it, then?;a:{first.text};u:And why?;a:"
    assert tokenizer.decode(second.context) == tokenizer.decode(tokenizer(asked).input_ids)
    assert second.text == tokenizer.decode(greedy(model, list(second.context), 6), skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    "template",
    [
        {"tool_use": "{{ 1 }}"},
        "{{ messages + 1 }}",
        "{{ messages[9].content }}",
        "{{ raise_exception('no') }}",
        "{% for",
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_error(template: Any) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="the chat template of .* cannot be used"):
        Conversation([Prompt(1, ("Who?",))], 2, 0.0, 1, 0).require_askable(tokenizer)


def test_without_a_template_turns_are_paragraphs(tokenizer: Any) -> None:
    first, second = answers(speaking(), tokenizer, PROMPTS, max_new_tokens=6)[1]
    assert list(second.context) == tokenizer(f"What is it, then?\n\n{first.text}\n\nAnd why?").input_ids


def test_sampling_follows_the_seed_and_leaves_the_random_state(tokenizer: Any) -> None:
    model = speaking()

    def sampled(seed: int) -> list[str]:
        found = answers(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=2.0, seed=seed)
        return [turn.text for turns in found for turn in turns]

    state = torch.random.get_rng_state()
    assert sampled(0) == sampled(0) != sampled(1)
    assert torch.equal(torch.random.get_rng_state(), state)
