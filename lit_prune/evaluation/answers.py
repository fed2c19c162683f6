"""What a model says: greedy answers, for reading before and after pruning."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.measure import evaluating


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, *, max_new_tokens: int = 64
) -> str:
    """Answer a question greedily; the model's mode is restored afterwards.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer. With a chat template the question is put as a user's turn, else it is continued.
        question: Plain text.
        max_new_tokens: Length limit of the answer, in tokens.

    Returns:
        The new text alone, without special tokens.
    """
    prompt = _prompt(tokenizer, question).to(model.device)
    generator: Any = model
    # Sampling settings of the model's own make transformers warn when nothing is sampled.
    plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with evaluating(model):
        tokens = generator.generate(**prompt, max_new_tokens=max_new_tokens, pad_token_id=pad, **plain)
    new = tokens[0, prompt["input_ids"].shape[1] :]
    return cast(str, tokenizer.decode(new, skip_special_tokens=True)).strip()


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> Any:
    if getattr(tokenizer, "chat_template", None) is None:
        return tokenizer(question, return_tensors="pt", return_token_type_ids=False)
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
