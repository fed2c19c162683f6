"""`lit-prune bench speed`: how fast models read and write, in turns, as ratios with their spread."""

from __future__ import annotations

from collections.abc import Mapping

from lit_prune.commands.arguments import default_device, model_names
from lit_prune.errors import LitPruneError
from lit_prune.evaluation import Speed, Speedup, compare_speed, speedup
from lit_prune.models import load
from lit_prune.writing import write_text

HEADS = ("model", "prefill, ms", "times as fast", "decode, ms", "times as fast")


def bench_speed(
    models: str,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    repeats: int = 21,
    warmup: int = 2,
    dtype: str = "float32",
    device: str | None = None,
    output: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Time models in turns on the same random prompts; ratios to the first, with 95 % intervals.

    All models are in memory at once. Prefill is one pass over the prompts, decode one greedy step with the cache.

    Args:
        models: Two or more, separated by commas, the reference first - hub names, folders (pruned too), GGUF files, or
            package:NAME. The same one twice shows what the machine's noise is.
        prompt_tokens: Tokens in a prompt.
        new_tokens: Greedy steps in a turn.
        batch: Prompts at a time.
        repeats: Turns that count; 6 at least for an interval, else the range is shown.
        warmup: Turns before them that do not.
        dtype: Of the weights: float32, bfloat16, float16 or auto.
        device: Such as cuda:0 or cpu; a GPU where there is one.
        output: Markdown file for the table.
        trust_remote_code: Run code that comes with the model.
    """
    names = model_names(models)
    if len(names) < 2:
        raise LitPruneError("bench speed compares: name two models or more, separated by commas, the reference first")
    device = default_device(device)
    # Keys that differ, where the same model is named twice.
    loaded = {
        f"{name} ({number})" if names.count(name) > 1 else name: load(
            name, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        for number, name in enumerate(names, start=1)
    }
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch}
    page = speed_table(compare_speed(loaded, **sizes, repeats=repeats, warmup=warmup))
    if output is not None:
        write_text(output, page)
    print(page)


def speed_table(speeds: Mapping[str, Speed]) -> str:
    """Seconds and ratios to the first model as a Markdown table, one model a row."""
    first, *others = speeds.values()
    lines = [HEADS, ("---", *["---:"] * (len(HEADS) - 1)), (*_cells(next(iter(speeds)), first, "", ""),)]
    for name, each in zip(list(speeds)[1:], others, strict=True):
        prefill = speedup(first.prefill_readings, each.prefill_readings)
        decode = speedup(first.decode_readings, each.decode_readings)
        lines.append(_cells(name, each, _ratio(prefill), _ratio(decode)))
    conditions = (
        f"{first.batch} x {first.prompt_tokens} tokens read, then {first.new_tokens} steps; {first.repeats} turns; "
        f"{first.device}, {first.dtype}. In brackets 95 % intervals of the median ratio."
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{conditions}\n"


def _cells(name: str, speed: Speed, prefill: str, decode: str) -> tuple[str, ...]:
    read, write = (f"{1e3 * each:.2f}" for each in (speed.prefill_seconds, speed.decode_seconds_per_token))
    return name.replace("|", "\\|"), read, prefill, write, decode


def _ratio(speedup: Speedup) -> str:
    return f"{speedup.ratio:.3f} ({speedup.low:.3f} to {speedup.high:.3f})"
