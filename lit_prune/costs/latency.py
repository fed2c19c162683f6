"""Seconds that each kind of sublayer takes on this device, measured: the model with it and without it, in turns.

Sublayers of the same classes and shapes are one kind and are measured once. Every second one of a kind is muted at a
time, and the difference divided by their number: that of a single one would drown in the noise of a busy machine.
"""

from __future__ import annotations

import copy
import inspect
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_prune.anatomy import (
    Anatomy,
    Sublayer,
    cache_of,
    cache_option,
    context_length,
    decoder_config,
    find_sublayers,
    language_model,
)
from lit_prune.errors import MeasureError
from lit_prune.plan import SublayerId
from lit_prune.surgery import evaluating, mute

WARMUP = 2
Clock = Callable[[PreTrainedModel], float]


def now(model: PreTrainedModel) -> float:
    """Seconds on a clock that waits for the model's device."""
    if model.device.type != "cpu":
        getattr(torch, model.device.type).synchronize()
    return time.perf_counter()


def inference_options(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments that `generate` gives a model: a cache where it keeps one, the head at the last position alone."""
    options: dict[str, Any] = {"use_cache": bool(decoder_config(model).use_cache)}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    return options


@dataclass(frozen=True)
class Latency:
    """Measured seconds of one forward pass.

    Attributes:
        total: Seconds of the whole model, the median over repeats.
        sublayers: Seconds of each sublayer, which are those of its kind: the median difference that it makes.
    """

    total: float
    sublayers: Mapping[SublayerId, float]


def measure_latency(
    model: nn.Module,
    *,
    phase: Literal["prefill", "decode"] = "decode",
    batch: int = 1,
    length: int = 512,
    repeats: int = 15,
    clock: Clock = now,
) -> Latency:
    """Time the model on random tokens, whole and without some sublayers of each kind, in turns.

    Args:
        model: A causal language model, perhaps pruned or wrapped by peft; its modes are restored afterwards.
        phase: `prefill`: all tokens at once; `decode`: the last of them, with a cache of the others.
        batch: How many sequences are run at a time.
        length: How many tokens each sequence has.
        repeats: How many turns count; two before them do not.
        clock: Reads the time in seconds, once the model's device is done.

    Raises:
        MeasureError: A number or the phase cannot be, the tokens exceed the context, or nothing can be timed.
    """
    network: PreTrainedModel = language_model(model)
    _require_possible(network, phase, batch, length, repeats)
    anatomy = find_sublayers(network)
    kinds = kinds_of(network, anatomy)
    tokens, seed = decoder_config(network).vocab_size, torch.Generator().manual_seed(0)
    prompt = torch.randint(tokens, (batch, length), generator=seed).to(network.device)
    own = 1 if phase == "decode" and inference_options(network)["use_cache"] else length
    with evaluating(network):
        timers = [_timer(network, anatomy, kind[::2], prompt, own) for kind in ([], *kinds)]
        rounds = [[seconds(clock) for seconds in timers] for _ in range(WARMUP + repeats)][WARMUP:]
    found: dict[SublayerId, float] = {}
    whole, *without = zip(*rounds, strict=True)
    for kind, times in zip(kinds, without, strict=True):
        seconds_of_muted = statistics.median(map(operator.sub, whole, times))
        found |= dict.fromkeys(kind, seconds_of_muted / len(kind[::2]))
    return Latency(statistics.median(whole), found)


def measure_passes(
    model: nn.Module, *, length: int, most_tokens: int, repeats: int = 15, clock: Clock = now
) -> list[float]:
    """Time passes over 1 to `most_tokens` tokens behind a cache of others, in turns; seconds by those of one token.

    Such passes verify what a draft proposed. Medians over turns; two before them do not count.

    Args:
        model: A causal language model with a KV cache; its modes are restored afterwards.
        length: Tokens of the text, those of a pass included.
        most_tokens: The most tokens of a pass.
        repeats: How many turns count.
        clock: Reads the time in seconds, once the model's device is done.

    Raises:
        MeasureError: A number cannot be, the text exceeds the context, or the model keeps no cache.
    """
    network: PreTrainedModel = language_model(model)
    _require_possible(network, "decode", 1, length, repeats)
    if not 1 <= most_tokens < length or not decoder_config(network).use_cache:
        raise MeasureError(f"a pass over {most_tokens} tokens goes on from a cache of others; found a text of {length}")
    seed = torch.Generator().manual_seed(0)
    prompt = torch.randint(decoder_config(network).vocab_size, (1, length), generator=seed).to(network.device)
    with evaluating(network):
        timers = [_timer(network, find_sublayers(network), (), prompt, number) for number in range(1, most_tokens + 1)]
        rounds = [[seconds(clock) for seconds in timers] for _ in range(WARMUP + repeats)][WARMUP:]
    return [statistics.median(turn[number] / turn[0] for turn in rounds) for number in range(most_tokens)]


def kinds_of(model: nn.Module, anatomy: Anatomy) -> list[list[SublayerId]]:
    """Groups of sublayers that take the same time: their classes, shapes and settings are the same."""
    kinds: dict[Any, list[SublayerId]] = {}
    for sublayer in anatomy.sublayers:
        kinds.setdefault(_signature(model, sublayer), []).append(sublayer.id)
    return list(kinds.values())


def _signature(model: nn.Module, sublayer: Sublayer) -> Any:
    modules = [model.get_submodule(part.path) for part in sublayer.parts]
    classes = [(name, type(inner).__name__) for module in modules for name, inner in module.named_modules()]
    shapes = [(name, weight.shape, weight.dtype) for module in modules for name, weight in module.named_parameters()]
    # Such as a sliding window, which some blocks of a model have.
    own = vars(model.get_submodule(sublayer.path)).items()
    settings = [(name, value) for name, value in own if isinstance(value, bool | int | str) and name != "layer_idx"]
    return sublayer.id.kind, tuple(classes), tuple(shapes), tuple(sorted(settings))


def _timer(
    model: PreTrainedModel, anatomy: Anatomy, muted: Sequence[SublayerId], prompt: Tensor, num_tokens: int
) -> Callable[[Clock], float]:
    """A function that runs the last tokens of a prompt [batch, seq] without some sublayers, and gives the seconds."""
    options, kept = inference_options(model), None
    if num_tokens < prompt.shape[1]:
        with mute(model, muted, anatomy=anatomy):
            kept = cache_of(model(input_ids=prompt[:, :-num_tokens], **options))
    tokens = prompt[:, -num_tokens:]
    if 1 < num_tokens < prompt.shape[1]:
        options.pop("logits_to_keep", None)  # all of them are looked at

    def seconds(clock: Clock) -> float:
        cache = copy.deepcopy(kept)  # the pass writes into it
        with mute(model, muted, anatomy=anatomy):
            started = clock(model)
            model(input_ids=tokens, **cache_option(model, cache), **options)
            return clock(model) - started

    return seconds


def _require_possible(model: PreTrainedModel, phase: str, batch: int, length: int, repeats: int) -> None:
    if phase not in ("prefill", "decode"):
        raise MeasureError(f"the phase of a latency must be prefill or decode; found {phase!r}")
    least = 2 if phase == "decode" else 1
    if min(batch, repeats) < 1 or length < least:
        raise MeasureError(
            f"a latency needs a batch and repeats of 1 at least and, for {phase}, a length of {least} at least; "
            f"found {batch}, {repeats} and {length}"
        )
    if (context := context_length(model.config)) is not None and length > context:
        raise MeasureError(f"a latency at {length} tokens was asked for; the model's context holds {context}")
    if model.device.type == "meta":
        raise MeasureError("a model on the meta device takes no time; load it with its weights")
