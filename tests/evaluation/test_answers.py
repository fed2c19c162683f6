"""Answers: greedy, the new text alone, template where there is one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import GenerationConfig

from lit_prune.evaluation import answer
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
