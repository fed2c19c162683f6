"""`lit-prune bench speed`: how fast models read and write, in turns, as ratios with their spread."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_prune.commands.arguments import model_names, require_writable
from lit_prune.commands.bench_draft import Drafts, place_in_words
from lit_prune.commands.options import Loading
from lit_prune.errors import LitPruneError
from lit_prune.files import markdown_table, say, write_text

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_prune.evaluation import Ideal, Speed

LOADING, DRAFTS = Loading(), Drafts()
RATIO, SIZES = "times as fast", ("files, MB", "weights, MB", "cache, MB", "peak, MB")
HEADS = ("model", "prefill, ms", RATIO, "decode, ms", RATIO, "tokens/s", *SIZES)
IDEAL = "ideal of "
IDEAL_HEADS = ("model", "ideal prefill, ms", "of the ideal's time", "ideal decode, ms", "of the ideal's time")


def bench_speed(
    models: str,
    *,
    prompt_tokens: int | list[int] = 128,
    new_tokens: int = 32,
    batch: int | list[int] = 1,
    repeats: int = 21,
    warmup: int = 2,
    ideal: bool = False,
    drafting: Drafts = DRAFTS,
    loading: Loading = LOADING,
    output: str | None = None,
) -> None:
    """Time models in turns on the same random prompts; ratios to the first, with 95 % intervals, and bytes.

    All models are in memory at once. Prefill is one pass over the prompts, decode one greedy step with the cache. With
    a draft, one model writes alone and with it (speculative decoding), on prompts of real text, and the text has to be
    the same.

    Args:
        models: Two or more, separated by commas, the reference first - hub names, folders (pruned too), GGUF files, or
            package:NAME. The same one twice shows what the machine's noise is. With a draft, one.
        prompt_tokens: Tokens in a prompt; of several numbers - [128, 512] - each makes a table.
        new_tokens: Greedy steps in a turn.
        batch: Prompts at a time; the same.
        repeats: Turns that count; 6 at least for an interval, else the range is shown.
        warmup: Turns before them that do not.
        ideal: Set every pruned model beside the first one's time less that of what was removed, on a CPU.
        drafting: Drafts of one model, in the place of others.
        loading: How the models are loaded.
        output: Markdown file for the tables.
    """
    require_writable(output)
    names, lengths = model_names(models), _listed(prompt_tokens)
    if not _listed(batch) or not lengths:
        raise LitPruneError("batch and prompt_tokens name a number at least, such as [1, 8]")
    sizes = {"new_tokens": new_tokens, "repeats": repeats, "warmup": warmup}
    if drafting.draft is not None:
        if len(names) > 1 or ideal or _listed(batch) != [1]:
            raise LitPruneError("with drafts one model writes for one prompt at a time; leave batch and ideal out")
        tables = drafting.tables(names[0], lengths, loading, **sizes)
    elif len(names) < 2:
        raise LitPruneError(
            "bench speed compares: name two models or more, commas between, the reference first, or one and --draft"
        )
    else:
        tables = _tables(names, itertools.product(_listed(batch), lengths), loading, ideal=ideal, **sizes)
    pages = []
    for table in tables:
        pages.append(table)
        if output is not None:
            write_text(output, "\n".join(pages))
    say("\n".join(pages))


def _tables(
    names: Sequence[str], shapes: Iterable[tuple[int, int]], loading: Loading, *, ideal: bool, **sizes: int
) -> Iterator[str]:
    from lit_prune.evaluation import compare_speed

    # Keys that differ, where the same model is named twice.
    loaded = {
        f"{name} ({number})" if names.count(name) > 1 else name: loading.model(name)
        for number, name in enumerate(names, start=1)
    }
    ideals = _ideals(loaded) if ideal else {}
    for batch, length in shapes:
        speeds = compare_speed(loaded, prompt_tokens=length, batch=batch, ideals=ideals, footprints=True, **sizes)
        yield speed_table(speeds)
        if ideals:
            yield ideal_table(speeds)


def _listed(numbers: int | list[int]) -> list[int]:
    return [numbers] if isinstance(numbers, int) else numbers


def _ideals(models: Mapping[str, PreTrainedModel]) -> dict[str, Ideal]:
    from lit_prune.anatomy import find_sublayers
    from lit_prune.evaluation import Ideal

    first, *others = models
    whole = find_sublayers(models[first])
    ideals = {}
    for name in others:
        anatomy = find_sublayers(models[name])
        ideal = Ideal.of(first, whole, anatomy.removed)
        if anatomy.num_blocks != whole.num_blocks or not ideal.without:
            raise LitPruneError(f"{name} is no pruned copy of {first}, so that there is nothing to compare it with")
        ideals[IDEAL + name] = ideal
    return ideals


def speed_table(speeds: Mapping[str, Speed]) -> str:
    """Seconds, ratios to the first model and bytes as a Markdown table, one model a row."""
    own = {name: speed for name, speed in speeds.items() if not name.startswith(IDEAL)}
    first = next(iter(own.values()))
    lines = []
    for name, speed in own.items():
        prefill, decode = ("", "") if speed is first else _ratios(first, speed)
        read, write = _milliseconds(speed)
        tokens = f"{speed.batch / speed.decode_seconds_per_token:.1f}"
        found = speed.footprint
        sizes = ("", "", "") if found is None else (found.weights, found.cache, found.peak)
        megabytes = (value if isinstance(value, str) else f"{value / 1e6:,.1f}" for value in sizes)
        lines.append((name, read, prefill, write, decode, tokens, _files(name), *megabytes))
    conditions = (
        f"{first.batch} x {first.prompt_tokens} tokens read, then {first.new_tokens} steps; {first.repeats} turns; "
        f"{place_in_words(first.device, first.dtype)}. In brackets 95 % intervals of the median ratio."
    )
    return f"{markdown_table(HEADS, lines)}\n\n{conditions}\n"


def _files(name: str) -> str:
    """Megabytes of a model's weights on disk, where it lies in a folder or file of this machine."""
    path = Path(name.partition(" (")[0]).expanduser()
    files = [*path.glob("*.safetensors")] if path.is_dir() else [path] if path.is_file() else []
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f}" if files else ""


def ideal_table(speeds: Mapping[str, Speed]) -> str:
    """Every pruned model beside the dense one's time less that of what was removed."""
    lines = []
    for name, speed in speeds.items():
        if ideal := speeds.get(IDEAL + name):
            (read, write), (prefill, decode) = _milliseconds(ideal), _ratios(speed, ideal)
            lines.append((name, read, prefill, write, decode))
    note = "Ideal: the first model less what the removed sublayers take in it, in the same run."
    return f"{markdown_table(IDEAL_HEADS, lines)}\n\n{note}\n"


def _milliseconds(speed: Speed) -> tuple[str, str]:
    return f"{1e3 * speed.prefill_seconds:.2f}", f"{1e3 * speed.decode_seconds_per_token:.2f}"


def _ratios(before: Speed, after: Speed) -> tuple[str, str]:
    from lit_prune.evaluation import speedup

    prefill = speedup(before.prefill_readings, after.prefill_readings)
    decode = speedup(before.decode_readings, after.decode_readings)
    return str(prefill), str(decode)
