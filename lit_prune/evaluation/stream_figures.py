"""What an analysis found: numbers by sublayer, by depth and by path, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SublayerFigures:
    """What one sublayer does, as means over tokens; padding and sequences without labels are left out.

    Attributes:
        name: `attention.5` or `mlp.12`, its address in the original model.
        input_norm: L2 norm of the residual stream that it reads.
        output_norm: L2 norm of what it adds to it.
        similarity: Cosine of the stream before it and behind it.
        ri: Relative rise of perplexity without it; None where not measured.
        nri: The same by its share of the parameters; None where not measured.
    """

    name: str
    input_norm: float
    output_norm: float
    similarity: float
    ri: float | None = None
    nri: float | None = None


@dataclass(frozen=True)
class DepthFigures:
    """The residual stream at one depth, as means over predicted tokens; the norm is a mean over all tokens.

    Attributes:
        name: `embedding`, or `block.3` for the stream behind that block of the original model.
        norm: L2 norm of the stream.
        loss: Loss of the target in nats, if final norm and head read the stream here.
        agreement: Share of tokens at which they would choose what the whole model chooses.
        kl: KL(whole model, here) of the distributions, in nats.
    """

    name: str
    norm: float
    loss: float
    agreement: float
    kl: float


@dataclass(frozen=True)
class PathFigures:
    """What the paths that end in one place carry, as means over predicted tokens.

    Attributes:
        name: `embedding`, a sublayer, or `biases`.
        logit: What they carry of the logit of the token that the model predicts; all together are that logit.
        margin: The same of that logit above the mean of all tokens' logits, which is all that the softmax sees.
        share: Their part of all that moves the margin up or down, abs(term) / sum of abs(term); all together are 1.
    """

    name: str
    logit: float
    margin: float
    share: float


@dataclass(frozen=True)
class Analysis:
    """What was found of one model, perhaps pruned, on one text.

    Attributes:
        num_blocks: Blocks of the original model.
        num_parameters: Parameters that are left.
        num_tokens: Tokens, over which stream and similarity are means.
        num_predicted: Predicted tokens, over which loss, lens and paths are means.
        loss: Mean token loss in nats.
        logit: Mean logit of the predicted token, as the head returns it.
        sublayers: Figures of the sublayers that are left, in the order of the stream.
        depths: Figures of the embedding and of every block that is left.
        paths: Figures of the paths; empty where the logit cannot be split.
        notes: What a reader has to know.
    """

    model: str
    num_blocks: int
    num_parameters: int
    num_tokens: int
    num_predicted: int
    loss: float
    logit: float
    sublayers: tuple[SublayerFigures, ...]
    depths: tuple[DepthFigures, ...]
    paths: tuple[PathFigures, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Analysis:
        """Read what `dataclasses.asdict` writes."""
        kinds = {"sublayers": SublayerFigures, "depths": DepthFigures, "paths": PathFigures}
        rows = {name: tuple(kind(**figures) for figures in data[name]) for name, kind in kinds.items()}
        return cls(**{**data, **rows, "notes": tuple(data["notes"])})
