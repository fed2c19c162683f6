"""`lit-prune export`: a model written for another runtime, and compared before it counts as written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lit_prune.commands.arguments import call, require_writable
from lit_prune.errors import LitPruneError
from lit_prune.files import say, write_text
from lit_prune.plan import PLAN_FILE, PrunePlan

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT, RECIPE = ".ckpt", "recipe"
USES = {
    "hf": "lit_prune.load('{0}'), or any loader of transformers after `import lit_prune`",
    "hf-remote-code": "AutoModelForCausalLM.from_pretrained('{0}', trust_remote_code=True)",
    "hf-stock": "AutoModelForCausalLM.from_pretrained('{0}')",
    "hf-zeroed": "AutoModelForCausalLM.from_pretrained('{0}')",
    "vllm": "vllm serve {0} --trust-remote-code",
    "mlx": "mlx_lm.generate --model {0} --prompt TEXT",
    "gguf": "any program of llama.cpp, with --model {0}",
    "recipe": "lit-prune apply {0} DENSE_MODEL --output FOLDER",
}
"""How what was written is used, by the format."""


def write_for(
    source: str,
    *,
    format: str,
    output: str | None = None,
    model: str | None = None,
    part: str | None = None,
    dtype: str = "auto",
    weights: Literal["f32", "f16", "bf16", "q8_0", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"] | None = None,
    tokenizer_from: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write a model, pruned or dense, for another runtime; the reference page of runtimes says what each loads.

    Args:
        source: A folder that lit-prune wrote, anything that prune takes, or a checkpoint of Lightning's (a .ckpt file).
        format: hf (with lit_prune imported), hf-remote-code (without it), hf-stock (whole blocks went), hf-zeroed (any
            tool, saves nothing), vllm, mlx, gguf for llama.cpp, or recipe (the plan and what differs from the dense
            model, of which apply rebuilds it). Of a plan alone: llama-quantize (its option --prune-layers),
            mergekit, or puzzletron (block_configs of NVIDIA's ModelOpt).
        output: A folder that does not exist or is empty; for gguf a file that does not exist. A plan for
            other tools is printed without it.
        model: For a checkpoint, the dense model that the training began with, and for a recipe the one that its plan
            was made for; by default the one that is named there.
        part: For a checkpoint, the attribute path of the model in the module, where there are several.
        dtype: Data type of the weights: float32, bfloat16, float16, auto for that of the files, fastest on the device.
        weights: Data type of the weights in a gguf file - f32, f16, bf16 or q8_0; f16 by default. With llama.cpp's own
            llama-quantize also q3_k_m, q4_k_m, q5_k_m and q6_k.
        tokenizer_from: A GGUF file of the dense model, whose tokenizer goes into the new one.
        push_to_hub: A repository on the Hugging Face Hub (user/name), to which what was written is uploaded.
        private: Make that repository private, if it is not there yet.
        trust_remote_code: Run code that comes with the model.
    """
    from lit_prune.export import FORMATS, PLAN_FORMATS, export_model, require_free
    from lit_prune.export.hub import require_login
    from lit_prune.export.quantise import require_weights

    if format in PLAN_FORMATS:
        given = {"model": model, "part": part, "weights": weights, "tokenizer_from": tokenizer_from}
        _require_none(format, {**given, "push_to_hub": push_to_hub})
        _write_plan(source, PLAN_FORMATS[format], output)
        return
    if format not in FORMATS:
        raise LitPruneError(f"{format!r} is no export format; known are {', '.join((*FORMATS, *PLAN_FORMATS))}")
    if output is None:
        raise LitPruneError(f"say where the model goes: --output {'FILE' if format == 'gguf' else 'FOLDER'}")
    chosen = {"weights": weights, "tokenizer_from": tokenizer_from}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if options and format != "gguf":
        raise LitPruneError(f"{', '.join(options)} is for gguf, not for {format}")
    _require_checkpoint(source, format, model, part)
    require_free(output, format)
    if weights is not None:
        require_weights(weights)
    if push_to_hub is not None:
        require_login(push_to_hub)
    network, tokenizer, plan = _read(source, model, part, dtype, trust_remote_code)
    if format == RECIPE and plan is not None:
        options["dense"] = _dense(model, plan, network, trust_remote_code)
    options |= {"push_to_hub": push_to_hub, "private": private}
    written = export_model(network, output, format=format, tokenizer=tokenizer, plan=plan, **options)
    _say_what_was_tried(format)
    if push_to_hub is not None:
        say(f"uploaded: https://huggingface.co/{push_to_hub}")
    say(f"written: {written}\nuse it: {USES[format].format(written)}")


run = partial(call, write_for)


def _require_none(format: str, given: Mapping[str, Any]) -> None:
    """Refuse options of models where a plan alone is written."""
    if wrong := [name for name, value in given.items() if value is not None]:
        raise LitPruneError(f"{format} is of a plan alone, and takes no {', '.join(wrong)}")


def _write_plan(source: str, form: Callable[[PrunePlan], str], output: str | None) -> None:
    """Print or write a plan as another tool takes it."""
    text = form(PrunePlan.load(source)).rstrip()
    if output is None:
        print(text)
        return
    require_writable(output)
    say(f"written: {write_text(Path(output).expanduser(), f'{text}{chr(10)}')}")


def _require_checkpoint(source: str, format: str, model: str | None, part: str | None) -> None:
    """Refuse options that are for checkpoints of Lightning's, where the source is none."""
    if Path(source).suffix == CHECKPOINT:
        return
    if part:
        raise LitPruneError(f"part is for checkpoints of Lightning's (.ckpt), and {source} is none")
    if model and format != RECIPE:
        raise LitPruneError(f"model is for checkpoints of Lightning's (.ckpt) and recipes; {source} is none of these")


def _read(source: str, model: str | None, part: str | None, dtype: str, trusted: bool) -> tuple[Any, Any, Any]:
    """The model, its tokenizer, and its plan where there is one."""
    from lit_prune.loading.models import load, load_tokenizer
    from lit_prune.training import load_checkpoint

    if Path(source).suffix == CHECKPOINT:
        name = model or _named_model(source)
        tokenizer = load_tokenizer(name, trust_remote_code=trusted)
        network, plan = load_checkpoint(source, name, part=part, dtype=dtype, trust_remote_code=trusted)
        return network, tokenizer, plan
    tokenizer = load_tokenizer(source, trust_remote_code=trusted)
    network = load(source, dtype=dtype, trust_remote_code=trusted)
    return network, tokenizer, PrunePlan.load(source) if (Path(source) / PLAN_FILE).is_file() else None


def _say_what_was_tried(format: str) -> None:
    from lit_prune.export import llama_cpp, mlx

    asked = {"mlx": (mlx, "mlx-lm", "mlx-lm"), "gguf": (llama_cpp, "llama.cpp", "xllamacpp")}
    if format in asked:
        target, runtime, package = asked[format]
        there = target.is_installed()
        say(f"compared with {runtime}" if there else f"not tried in {runtime}: pip install {package}")


def _dense(name: str | None, plan: PrunePlan, network: PreTrainedModel, trusted: bool) -> PreTrainedModel:
    """The dense model of a recipe, loaded as `network` is."""
    from lit_prune.anatomy import Record, decoder_config
    from lit_prune.loading.models import load

    return load(
        name or plan.model.name,
        dtype=network.dtype,
        revision=plan.model.revision if name in (None, plan.model.name) else None,
        layout=Record.of(decoder_config(network)).layout,
        trust_remote_code=trusted,
    )


def _named_model(checkpoint: str) -> str:
    """The model that the hyperparameters of a checkpoint name, as those of LitCausalLM do."""
    from lit_prune.loading.untrusted import read_settings

    name = read_settings(checkpoint).get("model")
    if not isinstance(name, str):
        raise LitPruneError(f"{checkpoint} does not name its model; say which the training began with (--model DENSE)")
    return name
