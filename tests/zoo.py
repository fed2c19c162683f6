"""Every architecture that is known to work: a tiny config, and by hand where its sublayers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

NUM_BLOCKS = 4
HIDDEN_SIZE = 32
VOCAB_SIZE = 128
MAX_POSITIONS = 128

SIZES = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
}
GPT_SIZES = {"n_embd": HIDDEN_SIZE, "n_layer": NUM_BLOCKS, "n_head": 4, "n_positions": MAX_POSITIONS}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SLIDING = {"sliding_window": 16}
NARROW = {"head_dim": 8}
FALCON = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 4}


@dataclass(frozen=True)
class Specimen:
    """One architecture: its config, and the paths of one block, read off the modelling code by hand.

    `inside` names the kinds whose module adds the residual by itself; `norms_stay` says that norms act on the sums.
    """

    model_type: str
    settings: Mapping[str, Any]
    blocks: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    shared_norms: tuple[str, ...] = ()
    mlp_parts: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    norms_stay: bool = False
    form: str = "pre-norm"
    tower: Mapping[str, Any] | None = None
    """Settings around the text's, of a model that sees images as well; its tower has as many blocks as the text."""
    latent: bool = False
    """Attention works keys and values out of latents, so its FLOPs are not those of its matrices."""
    wrong_upstream: tuple[str, ...] = field(default=())
    """What transformers gets wrong for the dense model already."""

    def but(self, **changes: Any) -> Specimen:
        return replace(self, **changes)

    def path(self, kind: str, block: int) -> str:
        return f"{self.blocks}.{block}.{self.attention if kind == 'attention' else self.mlp}"

    def going(self, kind: str) -> tuple[str, ...]:
        """Children of the block that go with one sublayer alone."""
        if kind == "attention":
            return (self.attention, *(() if self.norms_stay else self.attention_norms))
        return (self.mlp, *self.mlp_parts, *(() if self.norms_stay else self.mlp_norms))


def usual(model_type: str, **settings: Any) -> Specimen:
    return Specimen(model_type, {**SIZES, **settings})


def shared(model_type: str, **settings: Any) -> Specimen:
    norms = {"attention_norms": (), "mlp_norms": (), "shared_norms": ("input_layernorm",)}
    return usual(model_type, **settings).but(**norms, form="parallel, shared norm")


def sandwich(model_type: str, **settings: Any) -> Specimen:
    return usual(model_type, **settings).but(
        attention_norms=("input_layernorm", "post_attention_layernorm"),
        mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        form="sandwich",
    )


def after(model_type: str, **settings: Any) -> Specimen:
    norms = {"attention_norms": ("post_attention_layernorm",), "mlp_norms": ("post_feedforward_layernorm",)}
    return usual(model_type, **settings).but(**norms, form="norm after the branch")


def gpt(model_type: str, **settings: Any) -> Specimen:
    return Specimen(
        model_type,
        {**GPT_SIZES, **NO_DROPOUT, **settings},
        blocks="transformer.h",
        attention="attn",
        attention_norms=("ln_1",),
        mlp_norms=("ln_2",),
    )


def gpt_shared(model_type: str, **settings: Any) -> Specimen:
    norms = {"attention_norms": (), "mlp_norms": (), "shared_norms": ("ln_1",)}
    return gpt(model_type, rotary_dim=4, **settings).but(**norms, form="parallel, shared norm")


OPT = Specimen(
    "opt",
    {
        "hidden_size": HIDDEN_SIZE,
        "word_embed_proj_dim": HIDDEN_SIZE,
        "ffn_dim": 64,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "dropout": 0.0,
    },
    blocks="model.decoder.layers",
    mlp="fc2",
    attention_norms=("self_attn_layer_norm",),
    mlp_norms=("final_layer_norm",),
    mlp_parts=("fc1",),
)
BLOOM = Specimen(
    "bloom",
    {"hidden_size": HIDDEN_SIZE, "n_layer": NUM_BLOCKS, "n_head": 4},
    blocks="transformer.h",
    attention="self_attention",
    inside=("attention", "mlp"),
)
FALCON_7B = Specimen(
    "falcon",
    FALCON,
    blocks="transformer.h",
    attention="self_attention",
    attention_norms=(),
    mlp_norms=(),
    shared_norms=("input_layernorm",),
    form="parallel, shared norm",
)
NEOX = usual("gpt_neox").but(blocks="gpt_neox.layers", attention="attention", form="parallel, own norms")

EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def seeing(model_type: str, text: Specimen, eyes: Mapping[str, Any], **settings: Any) -> Specimen:
    return text.but(
        model_type=model_type,
        settings={"model_type": text.model_type, **text.settings},
        blocks="model.language_model.layers",
        tower={"vision_config": {**EYES, **eyes}, **settings},
    )


ZOO = {
    "llama": usual("llama"),
    "mistral": usual("mistral", **SLIDING),
    "ministral": usual("ministral", **SLIDING, **NARROW),
    "ministral3": usual("ministral3", **NARROW),
    "qwen2": usual("qwen2", tie_word_embeddings=True),
    "qwen3": usual("qwen3", **NARROW),
    "gemma": usual("gemma", **NARROW),
    "gemma2": sandwich("gemma2", **SLIDING, **NARROW),
    "gemma3": sandwich("gemma3_text", layer_types=["sliding_attention", "full_attention"] * 2, **SLIDING, **NARROW),
    "phi": shared("phi"),
    "phi3": usual("phi3"),
    "opt": OPT,
    "opt, post-norm": OPT.but(
        settings={**OPT.settings, "do_layer_norm_before": False}, norms_stay=True, form="post-norm"
    ),
    "gpt2": gpt("gpt2"),
    "gpt_neo": gpt("gpt_neo").but(
        settings={
            "hidden_size": HIDDEN_SIZE,
            "num_layers": NUM_BLOCKS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 16,
            "max_position_embeddings": MAX_POSITIONS,
        },
        wrong_upstream=("static",),
    ),
    "gptj": gpt_shared("gptj"),
    "gpt_neox": NEOX,
    "gpt_neox, sequential": NEOX.but(settings={**NEOX.settings, "use_parallel_residual": False}, form="pre-norm"),
    "codegen": gpt_shared("codegen", n_ctx=MAX_POSITIONS),
    "gpt_bigcode": gpt("gpt_bigcode"),
    "falcon 7B": FALCON_7B,
    "falcon 40B": FALCON_7B.but(
        settings={**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        attention_norms=("ln_attn",),
        mlp_norms=("ln_mlp",),
        shared_norms=(),
        form="parallel, own norms",
    ),
    "falcon, sequential": FALCON_7B.but(
        settings={**FALCON, "parallel_attn": False, "multi_query": False, "alibi": True},
        attention_norms=("input_layernorm",),
        mlp_norms=("post_attention_layernorm",),
        shared_norms=(),
        form="pre-norm",
        wrong_upstream=("static",),
    ),
    "bloom": BLOOM,
    "bloom, post-norm": BLOOM.but(
        settings={**BLOOM.settings, "apply_residual_connection_post_layernorm": True},
        norms_stay=True,
        form="post-norm",
    ),
    "mpt": Specimen(
        "mpt",
        {"d_model": HIDDEN_SIZE, "n_heads": 4, "n_layers": NUM_BLOCKS, "expansion_ratio": 2, "max_seq_len": 128},
        blocks="transformer.blocks",
        attention="attn",
        mlp="ffn",
        attention_norms=("norm_1",),
        mlp_norms=("norm_2",),
        inside=("mlp",),
    ),
    "olmo": usual("olmo"),
    "olmo2": after("olmo2"),
    "olmo3": after("olmo3", **SLIDING),
    "granite": usual("granite", residual_multiplier=0.5),
    "stablelm": usual("stablelm"),
    "stablelm, parallel": shared("stablelm", use_parallel_residual=True),
    "cohere": shared("cohere"),
    "cohere2": shared("cohere2", **SLIDING, **NARROW),
    "starcoder2": usual("starcoder2"),
    "smollm3": usual("smollm3"),
    "glm4": usual("glm4", **NARROW).but(
        attention_norms=("input_layernorm", "post_self_attn_layernorm"),
        mlp_norms=("post_attention_layernorm", "post_mlp_layernorm"),
        form="sandwich",
    ),
    "exaone4": after("exaone4", **SLIDING),
    "nemotron": usual("nemotron"),
    "helium": usual("helium", **NARROW),
    "mixtral": usual("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": usual("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=32, decoder_sparse_step=2),
    "qwen3_moe": usual("qwen3_moe", **EXPERTS, **NARROW),
    "gpt_oss": usual("gpt_oss", num_local_experts=4, num_experts_per_tok=2, **NARROW, **SLIDING),
    "llama4": usual(
        "llama4_text",
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=64,
        **NARROW,
    ).but(mlp="feed_forward"),
    "apertus": usual("apertus").but(attention_norms=("attention_layernorm",), mlp_norms=("feedforward_layernorm",)),
    "vaultgemma": usual("vaultgemma", **SLIDING, **NARROW).but(mlp_norms=("pre_feedforward_layernorm",)),
    "afmoe": usual("afmoe", **EXPERTS, **NARROW, num_dense_layers=1, **SLIDING).but(
        attention_norms=("input_layernorm", "post_attention_layernorm"),
        mlp_norms=("pre_mlp_layernorm", "post_mlp_layernorm"),
        form="sandwich",
    ),
    "olmoe": usual("olmoe", num_experts=4, num_experts_per_tok=2),
    "granitemoe": usual("granitemoe", num_local_experts=4, num_experts_per_tok=2).but(mlp="block_sparse_moe"),
    "glm4_moe": usual(
        "glm4_moe",
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        **NARROW,
    ),
    "deepseek_v3": usual(
        "deepseek_v3",
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ).but(latent=True),
    "llava (llama)": seeing("llava", usual("llama"), {"model_type": "clip_vision_model"}, image_token_index=120),
    "gemma3 (with images)": seeing(
        "gemma3", sandwich("gemma3_text", **SLIDING, **NARROW), {"model_type": "siglip_vision_model"}
    ),
    "mistral3 (mistral)": seeing("mistral3", usual("mistral"), {"model_type": "pixtral"}, image_token_index=120),
    "qwen2.5-vl (qwen2)": seeing(
        "qwen2_5_vl",
        usual(
            "qwen2_5_vl_text",
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        ),
        {"depth": NUM_BLOCKS, "num_heads": 4, "out_hidden_size": HIDDEN_SIZE},
    ),
}
"""By the names that docs/reference/architectures.md uses; variants of one model type stand behind a comma."""
