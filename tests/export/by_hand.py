"""What vLLM and mlx-lm compute with a folder, written out from the folder alone, with no class of theirs or ours."""

import json

import torch
from safetensors.torch import load_file
from torch.nn.functional import scaled_dot_product_attention, silu


def norm(hidden, weight, eps):
    return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + eps) * weight


def rotated(states, theta):
    """States [batch, heads, seq, head], the first half of a head turned with the second."""
    half = states.shape[-1] // 2
    angles = torch.outer(torch.arange(states.shape[2]).float(), theta ** (-torch.arange(half).float() / half))
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


@torch.no_grad()
def decilm_logits(folder, tokens):
    """Logits [batch, seq, vocab]; fails where vLLM would: an FFN before the first attention has no residual stream.

    A folder for mlx-lm is read as that does: with theta by its former name, heads that share out the width, a stream
    from the first, and FFNs as wide as a factor says.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    heads, eps, for_mlx = config["num_attention_heads"], config["rms_norm_eps"], "rope_theta" in config
    head = config["hidden_size"] // heads if for_mlx else config["head_dim"]
    theta = config["rope_theta"] if for_mlx else config["rope_parameters"]["rope_theta"]
    hidden, residual = weights["model.embed_tokens.weight"][tokens], 0 if for_mlx else None
    for number, block in enumerate(config["block_configs"]):
        own = {
            name.removeprefix(f"model.layers.{number}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{number}.")
        }
        if not block["attention"]["no_op"]:
            residual = hidden if residual is None else residual + hidden
            hidden = norm(residual, own.pop("input_layernorm.weight"), eps)
            groups = block["attention"]["n_heads_in_group"]
            query, key, value = (
                (hidden @ own.pop(f"self_attn.{name}_proj.weight").T).unflatten(-1, (-1, head)).transpose(1, 2)
                for name in "qkv"
            )
            key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
            found = scaled_dot_product_attention(rotated(query, theta), rotated(key, theta), value, is_causal=True)
            assert found.shape[1] == heads
            hidden = found.transpose(1, 2).flatten(2) @ own.pop("self_attn.o_proj.weight").T
        if not block["ffn"]["no_op"]:
            residual = residual + hidden
            hidden = norm(residual, own.pop("post_attention_layernorm.weight"), eps)
            gate, up, down = (own.pop(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
            if for_mlx:
                assert len(gate) == -(-int(2 * round(block["ffn"]["ffn_mult"], 6) * hidden.shape[-1] / 3) // 256) * 256
            hidden = (silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T
        assert not own, f"tensors that no block reads: {[*own]}"
    hidden = norm(residual + hidden, weights["model.norm.weight"], eps)
    return hidden @ weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T
