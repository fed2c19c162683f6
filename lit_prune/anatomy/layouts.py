"""The one table of what is special to a family of decoder blocks; everything else is found by structure.

A row is chosen by the names of the norms in a block, never by the model's name. A user describes a model that no row
fits in the same words (`Layout.read`), and the description travels in the model's config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_prune.errors import AnatomyError

PRE_NORM = "pre-norm"
SANDWICH = "sandwich"
AFTER_BRANCH = "norm after the branch"
POST_NORM = "post-norm"
PARALLEL = "parallel, own norms"
PARALLEL_SHARED = "parallel, shared norm"
PARALLEL_FORMS = (PARALLEL, PARALLEL_SHARED)

SCALE = "scale"
LINEAR = "linear"
CORRECTIONS: Mapping[str, tuple[str, ...]] = {
    PRE_NORM: (SCALE, LINEAR),
    PARALLEL: (SCALE, LINEAR),
    PARALLEL_SHARED: (SCALE, LINEAR),
    SANDWICH: (SCALE,),
    AFTER_BRANCH: (),
    POST_NORM: (),
}
"""By form, what can make up for a sublayer that is gone and be folded exactly into weights that stay.

`scale` is one factor on the residual stream before the cut, folded as its inverse into what writes behind it: every
reader of the stream has to norm it first (the norm's epsilon is the one inexactness). `linear` is a matrix folded into
the output projection that writes last before the cut: no norm may stand between that projection and the stream.
"""


@dataclass(frozen=True)
class Layout:
    """How a family of blocks names its parts, and how these join the residual stream.

    Attributes:
        attention_norms: Names of the norms that act on attention's input or output alone, and go with it.
        mlp_norms: Names of the norms that act on the FFN's input or output alone, and go with it.
        shared_norms: Names of the norms that feed both, and go when both are gone.
        norms_after: Those of the norms above that act on the output of attention or FFN, before it is added.
        staying_norms: Names of the norms that act on the residual stream itself, and never go.
        attention: Name of the attention; None where that says it (`attn` or `attention`).
        mlp: Names of the children that together are the FFN, in the order in which they are called; empty where the
            FFN is the other child with parameters.
        blocks: Module path of the list of blocks; None where it is the one list as long as `num_hidden_layers`.
        attention_output: Whether attention returns the tuple `(output, weights)`, or the output alone.
        residual_argument: Name of the argument of attention's or the FFN's `forward` with the residual that it adds by
            itself; without an argument of that name, the block adds it.
        parallel: Whether both read the input of the block; or the config attribute that says so.
        norms_stay_if: Config attribute and value with which all norms act on the residual stream.
    """

    attention_norms: tuple[str, ...] = ()
    mlp_norms: tuple[str, ...] = ()
    shared_norms: tuple[str, ...] = ()
    norms_after: tuple[str, ...] = ()
    staying_norms: tuple[str, ...] = ()
    attention: str | None = None
    mlp: tuple[str, ...] = ()
    blocks: str | None = None
    attention_output: Literal["tuple", "tensor"] = "tuple"
    residual_argument: str = "residual"
    parallel: bool | str = False
    norms_stay_if: tuple[str, bool] | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """All norms of the block."""
        return (*self.attention_norms, *self.mlp_norms, *self.shared_norms, *self.staying_norms)

    def for_config(self, config: Any) -> Layout:
        """The layout with what the config decides settled."""
        parallel = getattr(config, self.parallel, False) is True if isinstance(self.parallel, str) else self.parallel
        settled = dataclasses.replace(self, parallel=parallel, norms_stay_if=None)
        name, value = self.norms_stay_if or ("", None)
        if name and getattr(config, name, not value) is value:
            return dataclasses.replace(settled, attention_norms=(), mlp_norms=(), staying_norms=self.norms)
        return settled

    def form(self, norms: tuple[str, ...]) -> str:
        """How the sublayer with these norms of its own joins the residual stream."""
        if self.shared_norms:
            return PARALLEL_SHARED
        if self.parallel:
            return PARALLEL
        if not norms and self.staying_norms:
            return POST_NORM
        after = [name in self.norms_after for name in norms]
        if after and all(after):
            return AFTER_BRANCH
        return SANDWICH if any(after) else PRE_NORM

    @classmethod
    def read(cls, data: Any) -> Layout:
        """Make a layout of a user's description: a mapping of the attributes, lists where these are tuples.

        An AnatomyError says what is allowed where a key is unknown, or a value of another type.
        """
        fields = {field.name: field.default for field in dataclasses.fields(cls) if field.name != "norms_stay_if"}
        if not isinstance(data, Mapping) or not set(data) <= set(fields):
            found = ", ".join(map(str, data)) if isinstance(data, Mapping) else repr(data)
            raise AnatomyError(f"a layout is a mapping with keys of {', '.join(fields)}; found {found}")
        return cls(**{name: _checked(name, value, fields[name]) for name, value in data.items()})


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        value = [value] if isinstance(value, str) else value
        fits, expected = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value), "names"
        value = tuple(value) if fits else value
    elif name == "attention_output":
        fits, expected = value in ("tuple", "tensor"), "tuple or tensor"
    elif name == "parallel":
        fits, expected = isinstance(value, bool | str), "true, false or the config attribute that says so"
    else:
        fits, expected = isinstance(value, str), "a name"
    if not fits:
        raise AnatomyError(f"layout: {name} must be {expected}; found {value!r}")
    return value


LAYOUTS = (
    # Pre-norm, sequential: Llama, Mistral, Qwen, Phi3, Granite and most others; GPT-NeoX reads both norms in parallel.
    # Bloom can take the residual behind its norms.
    Layout(
        ("input_layernorm",),
        ("post_attention_layernorm",),
        parallel="use_parallel_residual",
        norms_stay_if=("apply_residual_connection_post_layernorm", True),
    ),
    # GPT-2, GPT-Neo, GPT-BigCode.
    Layout(("ln_1",), ("ln_2",)),
    # MPT; Apertus; VaultGemma.
    Layout(("norm_1",), ("norm_2",)),
    Layout(("attention_layernorm",), ("feedforward_layernorm",)),
    Layout(("input_layernorm",), ("pre_feedforward_layernorm",)),
    # OPT: the FFN is written out in the block; OPT-350M norms the sums instead of the inputs.
    Layout(
        ("self_attn_layer_norm",),
        ("final_layer_norm",),
        mlp=("fc1", "activation_fn", "fc2"),
        norms_stay_if=("do_layer_norm_before", False),
    ),
    # One norm feeds both: Phi, Cohere, Falcon-7B, StableLM with parallel residual; GPT-J, CodeGen.
    Layout(shared_norms=("input_layernorm",)),
    Layout(shared_norms=("ln_1",)),
    # Both read the block's input, each through its own norm: Falcon-40B.
    Layout(("ln_attn",), ("ln_mlp",), parallel=True),
    # Sandwich: Gemma 2 and 3.
    Layout(
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        norms_after=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    # Sandwich: GLM-4.
    Layout(
        ("input_layernorm", "post_self_attn_layernorm"),
        ("post_attention_layernorm", "post_mlp_layernorm"),
        norms_after=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    # Sandwich: AFMoE.
    Layout(
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_mlp_layernorm", "post_mlp_layernorm"),
        norms_after=("post_attention_layernorm", "post_mlp_layernorm"),
    ),
    # OLMo 2 and 3, EXAONE 4.
    Layout(
        ("post_attention_layernorm",),
        ("post_feedforward_layernorm",),
        norms_after=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
)

LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")
"""Entries of `config.layer_types` whose attention keeps keys and values, and nothing else, from token to token."""

EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k_experts")
"""Names under which configs say how many experts a token goes through."""

CONTEXT_LENGTHS = (
    *("max_position_embeddings", "max_seq_len", "n_positions", "n_ctx", "seq_length", "max_seq_length"),
    *("max_sequence_length", "model_max_length", "context_length"),
)
"""Names under which configs say how many tokens a model is made for."""

BLOCK_NUMBERS = ("layer_idx", "layer_id", "layer_number")
"""Attributes in which modules of a block keep its position in the list."""

BLOCK_LISTS = ("mlp_only_layers", "moe_layers")
"""Config entries that list positions of blocks; those with an entry for every block are told by their length."""
