"""The one table of what is special to a family of decoder blocks; everything else is found by structure.

A row is chosen by the names of the norms in a block, never by the model's name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a family of blocks names its norms, and its FFN where that is no module of its own.

    Attributes:
        attention_norms: Children of the block that act on attention's input or output alone.
        mlp_norms: The same for the FFN.
        inline_mlp: Children that together are the FFN, in order of call; empty where the FFN is one child.
        pre_norm_flag: Config attribute that, when false, moves the norms behind the sums, where they must stay.
    """

    attention_norms: tuple[str, ...]
    mlp_norms: tuple[str, ...]
    inline_mlp: tuple[str, ...] = ()
    pre_norm_flag: str | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """All norms of the block."""
        return (*self.attention_norms, *self.mlp_norms)


LAYOUTS = (
    # Pre-norm, sequential: Llama, Mistral, Qwen2 and Qwen3, Phi3, StarCoder2, and most others.
    Layout(("input_layernorm",), ("post_attention_layernorm",)),
    # GPT-2, GPT-Neo.
    Layout(("ln_1",), ("ln_2",)),
    # OPT: the FFN is written out in the block; OPT-350M norms the sums instead of the inputs.
    Layout(
        ("self_attn_layer_norm",),
        ("final_layer_norm",),
        inline_mlp=("fc1", "activation_fn", "fc2"),
        pre_norm_flag="do_layer_norm_before",
    ),
    # Sandwich: Gemma 2 and 3.
    Layout(
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    # Norm after the branch: OLMo 2 and 3.
    Layout(("post_attention_layernorm",), ("post_feedforward_layernorm",)),
)
