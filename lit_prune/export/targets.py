"""What other runtimes know by name: the one table of export, as `anatomy.layouts` is that of reading models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kin:
    """How a model type becomes a Llama that computes the same: see `kin.as_llama`.

    Attributes:
        multipliers: Settings of a config with the modules whose tensors they multiply, and by how much: a function of
            the setting and of how many numbers a head has.
        fused: Modules that hold several of Llama's, one below the other.
        neighbours: Whether the rotation turns neighbours, not halves of a head.
        inert: Further settings that change nothing, where no window slides.
    """

    multipliers: tuple[tuple[str, tuple[str, ...], Callable[[float, int], float]], ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    neighbours: bool = False
    inert: tuple[str, ...] = ()


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""The tensors that may be one."""
KIN = {
    "llama": Kin(),
    "mistral": Kin(),
    "qwen2": Kin(inert=("use_sliding_window", "max_window_layers", "layer_types")),
    "granite": Kin(
        multipliers=(
            ("embedding_multiplier", ("embed_tokens",), lambda by, _: by),
            ("attention_multiplier", ("q_proj",), lambda by, head: by * head**0.5),
            ("residual_multiplier", ("o_proj", "down_proj"), lambda by, _: by),
            ("logits_scaling", ("lm_head",), lambda by, _: 1 / by),
        )
    ),
    "phi3": Kin(
        fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
        inert=("original_max_position_embeddings", "embd_pdrop", "resid_pdrop"),
    ),
    "helium": Kin(neighbours=True),
}
"""Model types with the arithmetic of Llama, the only ones whose blocks runtimes let differ."""
SERVED_ACTIVATIONS = ("silu", "swish")
"""What their FFNs compute, by transformers' names for it; any other is not written as this one."""
SERVED_READ = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    *("rope_parameters", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "mlp_bias"),
)
"""Settings of a config that the graphs of all runtimes read."""
PLAIN_SETTINGS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
    *("rope_parameters", "max_position_embeddings", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Settings that a Llama of the same arithmetic takes over as they are."""
SERVED_INERT = (
    *("architectures", "transformers_version", "dtype", "chunk_size_feed_forward", "is_encoder_decoder"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions"),
    *("initializer_range", "use_cache", "pretraining_tp", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sliding_window"),
)
"""Settings that change nothing of what a trained model computes; a sliding window is looked at by itself."""
POSITIONS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of rotary positions, with the settings that the runtimes read; the last goes to GGUF by its frequencies."""
VLLM_POSITIONS = {
    **POSITIONS,
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
}

DECILM = {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas"}
"""What vLLM calls a model whose blocks lack attention or FFN."""
DECILM_CONFIG = (*SERVED_READ, "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
"""Settings of a config that are taken over."""
VLLM_MODELLED = (
    *("qwen3", "gemma", "gemma2", "gemma3_text", "vaultgemma", "smollm3"),
    *("olmo", "olmo2", "olmo3", "cohere", "cohere2", "exaone4", "glm4"),
    *("starcoder2", "stablelm", "nemotron", "phi", "ministral", "ministral3", "apertus"),
)
"""Further model types that vLLM's Transformers backend writes the same tokens with."""
MLX_TYPE = "nemotron-nas"
"""The same in mlx-lm, with other settings of FFNs."""
DECILM_CODE = '''"""The config of a model whose blocks differ, for vLLM's DeciLMForCausalLM. Written by lit-prune."""

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """A Llama's config and what each block has."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.block_configs = [
            each if isinstance(each, SimpleNamespace) else SimpleNamespace(**{
                part: SimpleNamespace(**each[part]) for part in ("attention", "ffn")
            })
            for each in block_configs or []
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        data = super().to_dict()
        blocks = [{part: vars(value) for part, value in vars(each).items()} for each in self.block_configs]
        return {**data, "block_configs": blocks}
'''

GGUF_ARCHITECTURE = "deci"
GGUF_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""Numbers of what most tensors of a file are."""
GGUF_QUANTISED = {"q3_k_m": 0.25, "q4_k_m": 0.15, "q5_k_m": 0.1, "q6_k": 0.05}
"""What llama.cpp's own tool makes of a file, and how far a tensor may move, as a share of its norm."""
GGUF_ENDS = {EMBEDDING: "token_embd", "model.norm.weight": "output_norm", HEAD: "output"}
GGUF_PARTS = {"attention": "self_attn", "mlp": "mlp"}
GGUF_NAMES = {
    "attention": {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    "mlp": {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
}
GGUF_NORMS = {"attention": ("input_layernorm", "attn_norm"), "mlp": ("post_attention_layernorm", "ffn_norm")}

CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (CASES + r"\p{N}{1,3}" + REST, "ByteLevel"): "llama-bpe",
    (CASES + r"\p{N}" + REST, "ByteLevel"): "qwen2",
}
"""What cuts a text before the merges, by llama.cpp's names: expressions, and steps of the tokenizers package."""
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
"""Kinds of tokenizers, by the same names."""
