"""Seconds for reading a prompt and for writing a token, of several models side by side.

The models take turns within every repeat, so that a busy machine slows all of them alike; medians are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_prune.anatomy import Anatomy, Record, cache_of, cache_option, context_length, decoder_config, language_model
from lit_prune.costs import inference_options, now
from lit_prune.errors import DataError, ModelError
from lit_prune.evaluation.footprint import Footprint, measure_footprint
from lit_prune.plan import SublayerId
from lit_prune.surgery import evaluating, stock_config

TAIL = 0.025
"""Chance that a median lies below its interval, and above it."""


@dataclass(frozen=True)
class Speed:
    """How fast a model is, and at which sizes that was measured, as for `compare_speed`.

    Attributes:
        prefill_seconds: Seconds of one forward pass over the prompts, median over repeats.
        decode_seconds_per_token: Seconds of one greedy step of the whole batch, mean of a repeat, median over repeats.
        device: Kind of device that it ran on, such as `cpu`.
        dtype: Data type of the parameters, such as `bfloat16`.
        prefill_readings: Seconds of every prefill, in the order of turns.
        decode_readings: Seconds a step of every repeat, in the order of turns.
        footprint: Bytes that the model occupies; None where they were not asked for.
    """

    prefill_seconds: float
    decode_seconds_per_token: float
    batch: int
    prompt_tokens: int
    new_tokens: int
    device: str
    dtype: str
    repeats: int
    prefill_readings: tuple[float, ...] = ()
    decode_readings: tuple[float, ...] = ()
    footprint: Footprint | None = None

    def times_as_fast(self, other: Speed) -> tuple[float, float]:
        """How many times as fast as another model this one reads a prompt, and writes a token."""
        return (
            other.prefill_seconds / self.prefill_seconds,
            other.decode_seconds_per_token / self.decode_seconds_per_token,
        )


@dataclass(frozen=True)
class Ideal:
    """The time of a model, by its name, less that of the modules at some paths, measured in the same run."""

    model: str
    without: Sequence[str]

    @classmethod
    def of(cls, model: str, whole: Anatomy, removed: Iterable[SublayerId]) -> Ideal:
        """That of a dense model, by its anatomy, less what was removed; what it does not have does not count."""
        gone = [sublayer for sublayer in removed if sublayer in whole]
        return cls(model, [part.path for part in whole.parts(gone)])


def compare_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    ideals: Mapping[str, Ideal] | None = None,
    footprints: bool = False,
) -> dict[str, Speed]:
    """Time models in turns on the same random prompts; their modes are restored afterwards.

    Decoding uses the KV cache; a model without any attention left has none and reads its whole text at every step,
    as it does in `generate`.

    Args:
        models: The models, by the names that the result has.
        prompt_tokens: Tokens in a prompt.
        new_tokens: Greedy steps in a repeat.
        batch: Prompts at a time.
        repeats: Measurements of every model that count.
        warmup: Measurements before them that do not.
        ideals: Further lines by name: what a model would take without some of its modules, from its own run in the same
            turn. On a CPU, where the time of a module can be read; reading it slows that model by a few microseconds
            a module.
        footprints: Whether to count bytes too, in a run apart.

    Returns:
        The speeds of the models and of the ideals, by name.

    Raises:
        DataError: A number is below 1 (`warmup` may be 0), or prompt and new tokens exceed a model's context.
    """
    sizes = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    require_sizes(sizes | {"warmup": warmup})
    ideals = ideals or {}
    stopwatches = {name: _Stopwatch(models[ideal.model], ideal.without) for name, ideal in ideals.items()}
    if stopwatches and any(model.device.type != "cpu" for model in models.values()):
        raise DataError("what a module takes can be read on a CPU alone; a GPU works on several at a time")
    prompts = {name: _prompt(name, model, batch, prompt_tokens, new_tokens) for name, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*models, *stopwatches)}
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        for _ in range(warmup + repeats):
            for name, model in models.items():
                own = {line: stopwatches[line] for line, ideal in ideals.items() if ideal.model == name}
                with ExitStack() as running:
                    for stopwatch in own.values():
                        running.enter_context(stopwatch.running())
                    prefill, decode, *rest = _once(model, prompts[name], new_tokens, [*own.values()])
                seconds[name].append((prefill, decode))
                for line, reading in zip(own, rest[1] if own else (), strict=True):
                    seconds[line].append(reading)
        found = {name: _speed(model, seconds[name][warmup:], sizes) for name, model in models.items()}
        if footprints:
            for name, model in models.items():
                once = partial(_once, model, prompts[name], new_tokens)
                found[name] = replace(found[name], footprint=measure_footprint(model, lambda: once()[2]))  # noqa: B023
    timed = {name: _speed(stopwatch.model, seconds[name][warmup:], sizes) for name, stopwatch in stopwatches.items()}
    return {**found, **timed}


def require_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse, before long work, numbers for `compare_speed` below 1 (`warmup` may be 0), or called otherwise."""
    least = {"prompt_tokens": 1, "new_tokens": 1, "batch": 1, "repeats": 1, "warmup": 0}
    if unknown := sorted(set(sizes) - set(least)):
        raise DataError(f"speed is measured by {', '.join(least)}; found {', '.join(unknown)}")
    if any(value < least[name] for name, value in sizes.items()):
        raise DataError("prompt_tokens, new_tokens, batch and repeats must be 1 at least, warmup 0 at least")


def require_room(name: str, model: Any, *, prompt_tokens: int = 128, new_tokens: int = 32, **_: int) -> None:
    """Refuse sizes for `compare_speed` that exceed the context of a model."""
    context = context_length(model.config)
    if context is not None and prompt_tokens + new_tokens > context:
        raise DataError(f"{prompt_tokens} + {new_tokens} tokens exceed the context of {context} of {name}")


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one model is as another: the median of the ratios of readings in the same turn.

    The interval from low to high holds the true median in 95 of 100 cases; with too few readings it is their range.
    """

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


def speedup(before: Sequence[float], after: Sequence[float]) -> Speedup:
    """Compare two models by seconds that were measured in the same turns, as `Speed` holds them.

    The interval is that of order statistics, which asks nothing of how readings are distributed.

    Example:
        >>> speedup([4.0, 2.0, 6.0], [2.0, 2.0, 2.0])
        Speedup(ratio=2.0, low=1.0, high=3.0)
    """
    ratios = sorted(first / second for first, second in zip(before, after, strict=True))
    number, rank, tail = len(ratios), 0, 0.0
    # The chance that the median lies below the ratio of this rank, counted from 0.
    while tail + (below := math.comb(number, rank) / 2**number) <= TAIL:
        tail, rank = tail + below, rank + 1
    edge = max(rank - 1, 0)
    return Speedup(statistics.median(ratios), ratios[edge], ratios[number - 1 - edge])


def dense_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A dense model of a pruned one's config with random weights: what the pruned one is faster than.

    It has the same class, dtype, device and attention implementation, and is in eval mode. The random state stays.

    Raises:
        ModelError: Whole blocks were taken out of the stack, so that the config tells of fewer.
    """
    model = language_model(model)
    if Record.of(decoder_config(model)).blocks is not None:
        raise ModelError(
            "whole blocks are out of the stack, and the config no longer tells of them: load the dense model"
        )
    config, device = stock_config(model), model.device
    factory: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        twin = factory.from_config(config, dtype=model.dtype, attn_implementation=config._attn_implementation)
    return cast(PreTrainedModel, twin.to(device).eval())


def _prompt(name: str, model: PreTrainedModel, batch: int, prompt_tokens: int, new_tokens: int) -> Tensor:
    require_room(name, model, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    config = model.config.get_text_config(decoder=True)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (batch, prompt_tokens), generator=generator).to(model.device)


@dataclass
class _Stopwatch:
    """Seconds that some modules of a model take."""

    model: PreTrainedModel
    paths: Sequence[str]
    seconds: float = 0.0
    started: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count in a `with` block, from zero."""
        self.seconds = 0.0
        modules = [self.model.get_submodule(path) for path in self.paths]
        hooks = [module.register_forward_pre_hook(self._start) for module in modules]
        hooks += [module.register_forward_hook(self._stop) for module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _start(self, module: Any, arguments: Any) -> None:
        self.started = time.perf_counter()

    def _stop(self, module: Any, arguments: Any, output: Any) -> None:
        self.seconds += time.perf_counter() - self.started


def _once(
    model: PreTrainedModel, prompt: Tensor, new_tokens: int, stopwatches: Sequence[_Stopwatch] = ()
) -> tuple[float, float, Any, list[tuple[float, float]]]:
    """Seconds of the prefill and of one decoding step, the last output, and the seconds less each stopwatch's."""
    options = inference_options(model)
    started = now(model)
    output = model(input_ids=prompt, **options)
    prefill, laps = now(model) - started, [stopwatch.seconds for stopwatch in stopwatches]
    started = now(model)
    text = prompt
    for _ in range(new_tokens):
        token = output.logits[:, -1:].argmax(dim=-1)
        if options["use_cache"]:
            output = model(input_ids=token, **cache_option(model, cache_of(output)), **options)
        else:
            text = torch.cat([text, token], dim=1)
            output = model(input_ids=text, **options)
    decode = now(model) - started
    less = [
        (prefill - lap, (decode - (stopwatch.seconds - lap)) / new_tokens)
        for stopwatch, lap in zip(stopwatches, laps, strict=True)
    ]
    return prefill, decode / new_tokens, output, less


def _speed(model: PreTrainedModel, seconds: Iterable[tuple[float, float]], sizes: Mapping[str, Any]) -> Speed:
    prefill, decode = zip(*seconds, strict=True)
    return Speed(
        statistics.median(prefill),
        statistics.median(decode),
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        **sizes,
        prefill_readings=prefill,
        decode_readings=decode,
    )
