"""One GGUF file for llama.cpp, in its architecture `deci`, whose blocks may lack attention and differ in their FFN.

Source: llama.cpp's src/models/deci.cpp and the gguf package. Two of its readings are worked around: a block without FFN
loses the output of its attention, so it gets one of 32 rows of zeros; the first block must have heads, so it gets one,
of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.errors import ModelError
from lit_prune.export.card import Usage
from lit_prune.export.folder import require_finished
from lit_prune.export.gguf_tokenizer import add_tokenizer
from lit_prune.export.kin import as_llama, head_size, interleaved
from lit_prune.export.llama_cpp import require_answer, require_same_in_llama_cpp
from lit_prune.export.quantise import require_weights, to_be_quantised
from lit_prune.export.served import require_served
from lit_prune.export.targets import (
    GGUF_ARCHITECTURE,
    GGUF_ENDS,
    GGUF_FILE_TYPES,
    GGUF_NAMES,
    GGUF_NORMS,
    GGUF_PARTS,
    POSITIONS,
)
from lit_prune.files import destination, file_aside, obstacle
from lit_prune.loading.sources import require_gguf
from lit_prune.plan import PrunePlan, SublayerId
from lit_prune.surgery import compacted, without_tombstones

STAND_IN_ROWS = 32
ROUNDING = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 2**-7}
"""How matrices may be stored, and how far a value may move, as a share of the largest of its tensor."""


def save_gguf(
    model: PreTrainedModel,
    file: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    plan: PrunePlan | None = None,
    weights: str = "f16",
    tokenizer_from: str | None = None,
    verify: bool = True,
) -> Path:
    """Write a pruned model as a GGUF file with its tokenizer; arguments are as for `export` and `save`.

    Matrices are stored as `weights` (f32, f16, bf16 or q8_0; by llama.cpp's own tool q3_k_m, q4_k_m, q5_k_m or q6_k),
    norms as f32. With `tokenizer_from`, a GGUF file of the
    dense model, its tokenizer is taken over. To verify is to read the file back, and to ask llama.cpp itself for logits
    where xllamacpp is installed.
    """
    path = require_no_file(file)
    require_weights(weights)
    require_gguf()
    require_served(model, "llama.cpp's deci", POSITIONS)
    require_finished(model, plan)
    lent = tokenizer_from is not None
    try:
        with file_aside(path) as aside, compacted(model), without_tombstones(model):
            with to_be_quantised(aside, weights, model.dtype) as (whole, stored):
                _write(whole, model, plan, stored, tokenizer, tokenizer_from)
                if verify:
                    _require_same(model, whole, stored)
                    require_same_in_llama_cpp(model, tokenizer, whole, exact=stored == "f32", lent=lent)
            if verify and whole != aside:
                require_answer(model, tokenizer, aside)
    except OSError as error:
        raise ModelError(f"cannot write {file}: {error}") from error
    return path


def usage_of_gguf(repository: str, file: Path) -> Usage:
    """How a file in a repository of the Hub is used."""
    code = f"llama-server --hf-repo {repository} --hf-file {file.name}"
    return Usage(code, "For llama.cpp and what is built on it.", language="bash", library="gguf")


def require_no_file(file: str | Path) -> Path:
    """Refuse with a ModelError a file that cannot be written, or is there already; else return where it will be."""
    path = destination(file)
    if (reason := obstacle(path)) is not None:
        raise ModelError(f"cannot write {file}: {reason}")
    if path.exists():
        raise ModelError(f"{file} exists already and would be overwritten; choose another name or remove it")
    return path


def _write(
    file: Path,
    model: PreTrainedModel,
    plan: PrunePlan | None,
    weights: str,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_from: str | None,
) -> None:
    import gguf

    with closing(gguf.GGUFWriter(file, GGUF_ARCHITECTURE)) as writer:
        _add_facts(writer, model, plan, weights)
        add_tokenizer(writer, tokenizer, model.config.vocab_size, tokenizer_from)
        _write_tensors(writer, model, weights)


def _add_facts(writer: Any, model: PreTrainedModel, plan: PrunePlan | None, weights: str) -> None:
    import gguf

    config, anatomy = model.config, find_sublayers(model)
    heads = _sizes(anatomy, "attention", config.num_attention_heads, 0)
    shared = _sizes(anatomy, "attention", config.num_key_value_heads, 0)
    if not heads[0]:
        heads[0] = shared[0] = 1
    planned = plan.model.name if plan is not None else ""
    writer.add_name(planned or config.name_or_path or config.model_type)
    writer.add_description(f"lit-prune removed {', '.join(map(str, anatomy.removed)) or 'nothing'}")
    writer.add_file_type(GGUF_FILE_TYPES[weights])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(anatomy.blocks))
    writer.add_feed_forward_length(_sizes(anatomy, "mlp", config.intermediate_size, STAND_IN_ROWS))
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    for add_size in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add_size(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _write_tensors(writer: Any, model: PreTrainedModel, weights: str) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[weights.upper()]
    for name, value in gguf_tensors(model):
        wanted = kind if value.dim() > 1 else gguf.GGMLQuantizationType.F32
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = gguf.GGMLQuantizationType.F16  # rows of no whole number of blocks
        data = value.detach().float().cpu().numpy()
        writer.add_tensor(name, gguf.quants.quantize(data, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


def _sizes(anatomy: Anatomy, kind: str, there: int, gone: int) -> list[int]:
    return [there if SublayerId(block, kind) in anatomy else gone for block in anatomy.blocks]


def gguf_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a pruned model by llama.cpp's names, stand-ins included, one at a time."""
    config, own = as_llama(model)
    for name, other in GGUF_ENDS.items():
        if name in own:
            yield f"{other}.weight", own[name]
    rope = config.rope_parameters
    if rope["rope_type"] == [*POSITIONS][-1]:
        # llama.cpp divides the frequencies by these.
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
        yield "rope_freqs.weight", plain / cast(Any, model).model.rotary_emb.inv_freq.cpu()
    anatomy = find_sublayers(model)
    for position, block in enumerate(anatomy.blocks):
        path = f"{anatomy.blocks_path}.{position}"
        for kind in GGUF_NAMES:
            if SublayerId(block, kind) in anatomy:
                found = _of_sublayer(own, path, config, kind)
            elif kind == "mlp" or position == 0:
                found = _stand_in(config, kind)
            else:
                continue
            yield from ((f"blk.{position}.{name}", value) for name, value in found)


def _of_sublayer(own: Mapping[str, Tensor], path: str, config: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    norm, target = GGUF_NORMS[kind]
    yield f"{target}.weight", own[f"{path}.{norm}.weight"]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, other in GGUF_NAMES[kind].items():
        for leaf in ("weight", "bias"):
            value = own.get(f"{path}.{GGUF_PARTS[kind]}.{name}.{leaf}")
            if value is not None:
                yield f"{other}.{leaf}", interleaved(value, heads[name]) if name in heads else value


def _stand_in(config: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    """A sublayer of the least size that llama.cpp takes, which adds zero."""
    width, rows = config.hidden_size, STAND_IN_ROWS if kind == "mlp" else config.head_dim
    yield f"{GGUF_NORMS[kind][1]}.weight", torch.ones(width)
    *into, out = GGUF_NAMES[kind].values()
    for name in into:
        yield f"{name}.weight", torch.zeros(rows, width)
    yield f"{out}.weight", torch.zeros(width, rows)


def _require_same(model: PreTrainedModel, file: Path, weights: str) -> None:
    import gguf

    read = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, value in gguf_tensors(model):
        expected = value.detach().float().cpu()
        found = read.pop(name, None)
        back = None if found is None else torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))
        allowed = ROUNDING[weights] * float(expected.abs().max())
        if back is None or float((back.reshape(expected.shape) - expected).abs().max()) > allowed:
            raise ModelError(f"read back from GGUF, the tensor {name} has other values")
    if read:
        raise ModelError(f"read back from GGUF, there are other tensors: {', '.join([*read][:3])}")
