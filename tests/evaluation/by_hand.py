"""The unraveled view done forwards: every term is carried through the norms, and read by the head at the end."""

from __future__ import annotations

import torch
from torch import nn

from tests import naive
from tests.scorers.test_stream import captured
from tests.tiny import NUM_BLOCKS
from tests.zoo import ZOO


def through(norm, terms, total):
    """Each term through a norm whose scale is that of the total; what the norm adds by itself goes to the biases."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 0)
    if isinstance(norm, nn.LayerNorm):
        gain, shift, center = weight.double(), norm.bias.double(), True
    else:
        gain, shift, center = weight.double() + (1 if "Gemma" in type(norm).__name__ else 0), None, False

    def centred(x):
        return x - x.mean(-1, keepdim=True) if center else x

    scale = (centred(total).square().mean(-1, keepdim=True) + eps).rsqrt()
    found = {name: gain * centred(term) * scale for name, term in terms.items()}
    if shift is not None:
        found["biases"] = found["biases"] + shift
    return found


@torch.no_grad()
def logits(model, architecture, batch, final_norm, factor=1.0):
    """By term: its part of every logit, float64 [batch, seq, vocab]."""
    blocks = model.get_submodule(ZOO[architecture].blocks)
    with captured(model, architecture) as seen:
        model(**batch)
    first = seen["x", 0].double()
    terms = {"embedding": first, "biases": torch.zeros_like(first)}
    for number in range(NUM_BLOCKS):
        block, x = blocks[number], sum(terms.values())
        added = {kind: seen[kind, number].view_as(first).double() for kind in ("attention", "mlp")}
        specimen = ZOO[architecture]
        for kind in ("attention", "mlp"):
            if specimen.form == "sandwich":
                name = "post_attention_layernorm" if kind == "attention" else "post_feedforward_layernorm"
                added[kind] = getattr(block, name)(added[kind].float()).double()
            terms[f"{kind}.{number}"] = factor * added[kind]
            if specimen.norms_stay:
                norm = block.self_attn_layer_norm if kind == "attention" else block.final_layer_norm
                terms = through(norm, terms, sum(terms.values()))
        if not specimen.norms_stay:
            torch.testing.assert_close(
                x + factor * sum(added.values()), seen["out", number].double(), atol=1e-4, rtol=0
            )
    if final_norm:
        terms = through(model.get_submodule(final_norm), terms, sum(terms.values()))
    head = model.get_output_embeddings()
    found = {name: term @ head.weight.double().T for name, term in terms.items()}
    if head.bias is not None:
        found["biases"] = found["biases"] + head.bias.double()
    return found


def module_calls(model, architecture, number):
    """A list that grows with every call of an attention."""
    calls = []
    naive.module_of(model, architecture, ("attention", number)).register_forward_hook(lambda *_: calls.append(1))
    return calls
