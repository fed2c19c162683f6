"""Tokens a second of a model alone and with drafts, in turns, and how many of the drafted tokens it accepts.

What is written has to be the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lit_prune.costs import now
from lit_prune.errors import DataError, MeasureError
from lit_prune.evaluation.speed import Speedup, require_room, require_sizes, speedup
from lit_prune.surgery import evaluating

NEAR = 4
"""Rounding steps of the largest logit by which the logits of two tokens may differ for one to take the other's place:
kernels for one token and for several sum in another order, and none is the right one."""


@dataclass
class Drafting:
    """What writing with one draft came to, or, of the model alone, without one.

    Attributes:
        seconds: Seconds of every text, in the order of turns, reading the prompt included.
        written: Tokens written.
        drafted: Tokens that the draft proposed.
        passes: Passes of the model.
        ties: Texts that go on otherwise from two tokens whose logits rounding does not tell apart.
    """

    seconds: tuple[float, ...] = ()
    written: int = 0
    drafted: int = 0
    passes: int = 0
    ties: int = 0

    @property
    def accepted(self) -> int:
        """Drafted tokens that stayed: every pass brings one more token than it accepts."""
        return self.written - self.passes

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that stayed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Mean tokens that a pass of the model brought."""
        return self.written / self.passes

    @property
    def tokens_per_second(self) -> float:
        """Tokens written by seconds."""
        return self.written / sum(self.seconds)

    def times_as_fast(self, other: Drafting) -> Speedup:
        """How many times as fast as another, text by text."""
        return speedup(other.seconds, self.seconds)


def compare_drafts(
    model: PreTrainedModel,
    drafts: Mapping[str, PreTrainedModel],
    prompts: Tensor,
    *,
    new_tokens: int = 64,
    warmup: int = 1,
) -> tuple[Drafting, dict[str, Drafting]]:
    """Let a model go on with prompts greedily, alone and with each draft in turn, by transformers' assisted decoding.

    Args:
        model: A causal language model.
        drafts: Its drafts by name, each with the numbers of tokens that it drafts at a time in its `generation_config`.
        prompts: Prompts without padding, int64 [prompts, seq]; each is a turn.
        new_tokens: Tokens to write for each, the end of a text or not.
        warmup: Turns before them, on the first prompt, that do not count.

    Returns:
        The model alone, and with each draft.

    Raises:
        DataError: A number is below 1, or the text exceeds the model's context.
        MeasureError: A draft has another vocabulary, or other text came out with it than rounding explains.
    """
    require_sizes({"repeats": len(prompts), "new_tokens": new_tokens, "warmup": warmup})
    require_room("the model", model, prompt_tokens=prompts.shape[1], new_tokens=new_tokens)
    if not drafts:
        raise DataError("there is no draft to compare with the model alone")
    for name, draft in drafts.items():
        _require_same_tokens(name, model, draft)
    alone, with_draft = Drafting(), {name: Drafting() for name in drafts}
    with ExitStack() as modes:
        for each in (model, *drafts.values()):
            modes.enter_context(evaluating(each))
        for number in range(-warmup, len(prompts)):
            prompt = prompts[max(0, number), None].to(model.device)
            expected = _write(alone, model, None, prompt, new_tokens)
            for name, draft in drafts.items():
                found = _write(with_draft[name], model, draft, prompt, new_tokens)
                if not torch.equal(found, expected):
                    with_draft[name].ties += _is_tie(model, found[0], expected[0], name)
            if number < 0:
                alone, with_draft = Drafting(), {name: Drafting() for name in drafts}
    return alone, with_draft


def _write(
    into: Drafting, model: PreTrainedModel, draft: PreTrainedModel | None, prompt: Tensor, new_tokens: int
) -> Tensor:
    """Write greedily with a draft or none, and add what it took; the whole text [1, seq]."""
    # No token ends a text, so that all have the same length.
    nothing = model.config.get_text_config(decoder=True).vocab_size
    settings = {"do_sample": False, "use_cache": True, "eos_token_id": nothing, "pad_token_id": 0}
    config = GenerationConfig.from_dict({"max_new_tokens": new_tokens, **settings})
    models = {"model": model} if draft is None else {"model": model, "draft": draft}
    with _counted(models) as runs:
        started = now(model)
        text: Tensor = model.generate(  # type: ignore[operator]
            prompt, generation_config=config, assistant_model=draft, attention_mask=torch.ones_like(prompt)
        )
        into.seconds += (now(model) - started,)
    into.written += text.shape[1] - prompt.shape[1]
    into.passes += runs["model"]
    into.drafted += runs["draft"]
    return text


@contextmanager
def _counted(models: Mapping[str, PreTrainedModel]) -> Iterator[Counter[str]]:
    """Count how often each model runs in a `with` block; a draft runs once for every token."""
    runs: Counter[str] = Counter()
    hooks = [each.register_forward_pre_hook(lambda *_, name=name: runs.update([name])) for name, each in models.items()]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def _require_same_tokens(name: str, model: PreTrainedModel, draft: PreTrainedModel) -> None:
    sizes = [each.config.get_text_config(decoder=True).vocab_size for each in (draft, model)]
    if sizes[0] != sizes[1]:
        raise MeasureError(f"{name} has a vocabulary of {sizes[0]:,} tokens, the model one of {sizes[1]:,}")


@torch.no_grad()
def _is_tie(model: PreTrainedModel, found: Tensor, expected: Tensor, name: str) -> bool:
    """Whether rounding explains why two texts [seq] part where they do; a MeasureError where it does not."""
    place = int((found != expected).nonzero()[0])
    logits = model(input_ids=expected[None, :place], use_cache=False).logits[0, -1].float()
    gap = float((logits[expected[place]] - logits[found[place]]).abs())
    if gap <= NEAR * torch.finfo(model.dtype).eps * float(logits.abs().max()):
        return True
    raise MeasureError(
        f"with {name} token {place} of a text is {int(found[place])}, without it {int(expected[place])}, whose logits "
        f"are {gap:.3g} apart: more than rounding explains. Assisted decoding is not exact for this model here"
    )
