"""The unraveled view: how much of a logit each of the terms that were added to the residual stream carries."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.anatomy import is_norm
from lit_prune.evaluation.recorder import Passed, StreamRecorder, Written

EMBEDDING, BIASES = "embedding", "biases"
"""Terms that are no sublayer's: what enters the first block; biases of norms and head."""

PROBE = 1e3
"""Size of the numbers that norms are asked with, beside which their epsilon is nothing."""


@dataclass(frozen=True)
class HeldNorm:
    """A norm with its scale held: `norm(x) = factor(x) * gain * (x - mean(x)) + shift`, linear in x but for the factor.

    The mean is 0 for norms that take none off. How a norm's weights make the gain [hidden] is read off what a float32
    copy of it returns, so that none is known by name.
    """

    norm: nn.Module
    gain: Tensor
    shift: Tensor
    is_centred: bool

    @classmethod
    @torch.no_grad()
    def of(cls, norm: nn.Module, like: Tensor) -> HeldNorm:
        """Find gain and shift by what a norm returns; `like` [..., hidden] is an input of it."""
        norm = copy.deepcopy(norm).float()
        # A copy has the hooks of what it is of.
        norm._forward_hooks.clear()
        norm._forward_pre_hooks.clear()
        level = torch.full((like.shape[-1],), PROBE, device=like.device)
        # Of mean 0, so that nothing is taken off, and of one size, so that the gain alone is left.
        wave = level * torch.where(torch.arange(len(level), device=level.device) % 2 == 0, 1.0, -1.0)
        shift = norm(torch.zeros_like(level))
        gain = (norm(wave) - shift) * wave.sign()
        is_centred = bool((norm(level) - shift).norm() < 0.01 * gain.norm())
        return cls(norm, gain, shift, is_centred)

    def pulled_back(self, direction: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a linear function of the norm's output into one of its input.

        The function is the product of the output with `direction` [..., positions, hidden]; the norm was called with
        `before` [positions, hidden]. Returns the direction for the input, and the constant [..., positions].
        """
        scaled = self.gain * self._centred(before)
        output = self.norm(before) - self.shift
        factor = (output * scaled).sum(dim=-1, keepdim=True) / scaled.square().sum(dim=-1, keepdim=True)
        return factor * self._centred(self.gain * direction), (direction * self.shift).sum(dim=-1)

    def _centred(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(dim=-1, keepdim=True) if self.is_centred else rows


class Unraveler:
    """Splits the logit of a token into what each term of the residual stream carries of it.

    A residual network without its norms is a sum over paths: every sublayer is gone through or around (Veit et al.
    2016, arXiv 1605.06431, "the unraveled view"). Here the 2^n paths are grouped by the last sublayer that they go
    through: together they are what that sublayer adds to the stream; the path around all is the embedding. The final
    norm (and the norms between the sums of post-norm blocks) is held at the scale that it has at that position, so that
    all behind a sublayer but other sublayers is linear, and

        logit(token) = embedding + attention.0 + mlp.0 + ... + biases,

    each term being its vector times the unembedding of the token, brought back through the norm. This is direct logit
    attribution: what a sublayer does by changing what later ones read is counted with those. The logit is what the
    head returns, before any cap or factor on it. The margin is the same with the mean unembedding taken off: the logit
    above the mean of all tokens', since the softmax does not see what is added to all of them.

    Made of a causal language model before any hook is on it.
    """

    def __init__(self, model: Any) -> None:
        self._modules = {path: module for path, module in model.named_modules() if path}
        self._head = next(path for path, module in self._modules.items() if module is model.get_output_embeddings())
        self._norms: dict[str, HeldNorm] = {}

    @torch.no_grad()
    def terms(self, recorder: StreamRecorder, mask: Tensor, tokens: Tensor) -> Mapping[str, Tensor] | None:
        """What each term carries of the logits and margins of some tokens [positions], in the pass of a recorder.

        `mask` [batch, seq] says which positions count. Returns float32 [2, positions] by name, logit and margin, the
        embedding first and `biases` last; None where more than norms and linear maps lies between blocks and logits.
        """
        direction, constant = self._unembedding(tokens)
        found: dict[str, Tensor] = {}
        tail = recorder.tail
        if not tail or tail[-1].path != self._head or not _is_chain(recorder.states[-1], tail):
            return None
        # Under a trainer's autocast the products would be of its short dtype.
        with torch.autocast(direction.device.type, enabled=False):
            for event in (*reversed(tail[:-1]), *reversed(recorder.events)):
                if isinstance(event, Written):
                    added = event.added(mask.to(event.before.device)).to(direction.device)
                    found[str(event.sublayer)] = (direction * added).sum(dim=-1)
                else:
                    direction, more = self._pulled_back(event, mask, direction)
                    constant = constant + more
            first = recorder.states[0][mask.to(recorder.states[0].device)].float().to(direction.device)
            found[EMBEDDING] = (direction * first).sum(dim=-1)
        return {**dict(reversed(found.items())), BIASES: constant}

    def _unembedding(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Directions [2, positions, hidden] and constants [2, positions] of logit and margin."""
        head = _plain(self._modules[self._head])
        rows = head.weight[tokens].float()
        directions = torch.stack([rows, rows - head.weight.mean(dim=0, dtype=torch.float32)])
        if getattr(head, "bias", None) is None:
            return directions, directions.new_zeros(directions.shape[:2])
        own = head.bias[tokens].float()
        return directions, torch.stack([own, own - head.bias.mean(dtype=torch.float32)])

    def _pulled_back(self, event: Passed, mask: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        module = self._modules[event.path]
        if is_norm(module):
            if event.path not in self._norms:
                self._norms[event.path] = HeldNorm.of(module, event.before)
            rows = event.before[mask.to(event.before.device)].float()
            back, constant = self._norms[event.path].pulled_back(direction.to(rows.device), rows)
            return back.to(direction.device), constant.to(direction.device)
        linear = _plain(module)
        weight = linear.weight.float() if isinstance(linear, Conv1D) else linear.weight.float().T  # [in, out]
        constant = direction.new_zeros(()) if linear.bias is None else direction @ linear.bias.float()
        return direction @ weight.T, constant


def _plain(module: nn.Module) -> Any:
    """A linear layer without an adapter around it."""
    return getattr(module, "get_base_layer", lambda: module)()


def _is_chain(state: Tensor, tail: Sequence[Passed]) -> bool:
    """Whether each module takes exactly what the one before it returned."""
    for event in tail:
        if event.before.shape != state.shape or not torch.equal(event.before.to(state.device), state):
            return False
        state = event.after
    return True
