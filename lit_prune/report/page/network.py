"""The map of the network: every sublayer of every block, and of those that are gone the round in which they went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lit_prune.plan import KINDS, PrunePlan, PruneStep, SublayerId
from lit_prune.report.summary import number as written

SHORT = {"attention": "attn", "mlp": "mlp"}


@dataclass(frozen=True)
class Place:
    """One sublayer.

    Attributes:
        kind: `attention` or `mlp`.
        label: What stands in the map.
        title: What is said of it.
        is_gone: Whether it was removed.
    """

    kind: str
    label: str
    title: str
    is_gone: bool


@dataclass(frozen=True)
class Block:
    """A block of the original model, by its number from 0."""

    number: int
    places: tuple[Place, ...]


def network_map(plan: PrunePlan) -> list[Block]:
    """All blocks of the model that a plan was made for."""
    rounds = {each: index for index, step in enumerate(plan.steps, 1) for each in step.removed.sublayers}
    blocks = [[SublayerId(block, kind) for kind in KINDS] for block in range(plan.model.num_blocks)]
    return [
        Block(number, tuple(_place(each, plan, rounds.get(each)) for each in sublayers))
        for number, sublayers in enumerate(blocks)
    ]


def _place(sublayer: SublayerId, plan: PrunePlan, index: int | None) -> Place:
    if index is not None:
        said = ", ".join(_removal(plan.steps[index - 1], index))
        return Place(sublayer.kind, str(index), f"{sublayer}: {said}", True)
    return Place(sublayer.kind, SHORT[sublayer.kind], f"{sublayer}: stays{_last_score(sublayer, plan)}", False)


def _removal(step: PruneStep, index: int) -> Iterator[str]:
    yield f"removed in round {index}"
    if step.epoch is not None:
        yield f"epoch {step.epoch}"
    if len(step.removed.sublayers) > 1:
        yield f"as part of {step.removed.name}"
    if step.score is not None:
        yield f"score {written(step.score)}"


def _last_score(sublayer: SublayerId, plan: PrunePlan) -> str:
    for step in reversed(plan.steps):
        for name in (str(sublayer), f"block.{sublayer.block}"):
            if name in step.scores:
                return f", score in the last round that gave one {written(step.scores[name])}"
    return ""
