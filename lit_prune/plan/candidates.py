"""Addresses of sublayers, candidates and their scores, as data without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_prune.errors import PlanError

KINDS = ("attention", "mlp")
MAX_BLOCKS = 10_000
"""The deepest models have a few hundred; a file that says more is damaged or hostile, and would fill the memory."""


def _number(block: str) -> int:
    # Python refuses to read numbers of thousands of digits.
    if len(block) > 9 or int(block) >= MAX_BLOCKS:
        raise PlanError(f"there is no model with a block {block[:20]}; lit-prune goes up to {MAX_BLOCKS:,} blocks")
    return int(block)


@dataclass(frozen=True, order=True)
class SublayerId:
    """One sublayer's address in the original model, kept for ever: block (0-based) and kind.

    Example:
        >>> SublayerId.parse("mlp.12")
        SublayerId(block=12, kind='mlp')
        >>> str(SublayerId(5, "attention"))
        'attention.5'
    """

    block: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.block}"

    @classmethod
    def parse(cls, text: str) -> SublayerId:
        """Read `attention.5` or `mlp.12`.

        Raises:
            PlanError: The text is of another form.
        """
        kind, _, block = str(text).partition(".")
        if kind not in KINDS or not block.isdecimal():
            raise PlanError(f"{text!r} is not a sublayer; expected attention.N or mlp.N, such as attention.5")
        return cls(_number(block), kind)


@dataclass(frozen=True, order=True)
class Candidate:
    """What is removed together: one sublayer, those of one block, or any set, in the order of blocks.

    Example:
        >>> Candidate.parse("block.3").sublayers
        (SublayerId(block=3, kind='attention'), SublayerId(block=3, kind='mlp'))
        >>> Candidate.together([Candidate.parse("mlp.7"), Candidate.parse("block.3")]).name
        'block.3+mlp.7'
    """

    sublayers: tuple[SublayerId, ...]

    @property
    def name(self) -> str:
        """`attention.5`, `mlp.5`, `block.5` for both of block 5, and such names joined by `+`."""
        present = set(self.sublayers)
        whole = {one.block for one in present if all(SublayerId(one.block, kind) in present for kind in KINDS)}
        names = [f"block.{one.block}" if one.block in whole else str(one) for one in self.sublayers]
        return "+".join(dict.fromkeys(names))

    @property
    def block(self) -> int:
        """The first block that changes when this is taken out."""
        return self.sublayers[0].block

    @classmethod
    def together(cls, candidates: Iterable[Candidate]) -> Candidate:
        """One candidate of all that several hold: a run of blocks, for one."""
        return cls(tuple(sorted({sublayer for candidate in candidates for sublayer in candidate.sublayers})))

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read the form that `name` writes, or raise `PlanError`."""
        sublayers: set[SublayerId] = set()
        for name in str(text).split("+"):
            kind, _, block = name.partition(".")
            whole = kind == "block" and block.isdecimal()
            sublayers |= {SublayerId(_number(block), own) for own in KINDS} if whole else {SublayerId.parse(name)}
        return cls(tuple(sorted(sublayers)))


@dataclass(frozen=True)
class Scores:
    """One round of scores.

    Attributes:
        importance: How important every candidate is; the lowest is removed first.
        base_nll: Mean token loss (nats) of the model as it is, where it was measured.
        nll: Mean token loss (nats) without a candidate, by candidate, where it was measured.
        zero: Importance of what changes nothing.
        measured: Share of the tokens on which a candidate was measured in this round, by candidate; empty for a search
            that measures all candidates on all tokens.
        screened: Importance on the share of the tokens that a search screens on in this round, by candidate.
        disturbed: Whether a search that spares itself work found a score outside of what it had expected.
        errors: Standard error of the importance by candidate, where the scorer draws samples.
        margins: Standard error of how far a candidate's importance is above the lowest, by candidate: paired over the
            sequences that both were measured on. Where the scorer knows it.
        chosen: Share of the sets in which a candidate is among those that go, where a search makes several: of those of
            several draws of the text, or of those that the text does not tell apart.
    """

    importance: Mapping[Candidate, float]
    base_nll: float | None = None
    nll: Mapping[Candidate, float] = field(default_factory=dict)
    zero: float = 0.0
    measured: Mapping[Candidate, float] = field(default_factory=dict)
    screened: Mapping[Candidate, float] = field(default_factory=dict)
    disturbed: bool = False
    errors: Mapping[Candidate, float] = field(default_factory=dict)
    margins: Mapping[Candidate, float] = field(default_factory=dict)
    chosen: Mapping[Candidate, float] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The candidate with the lowest importance, the first in order among equals."""
        return min(self.importance, key=lambda candidate: (self.importance[candidate], candidate))

    def merged(self, later: Scores) -> Scores:
        """These scores, with later ones of the same round in their place."""
        names = ("importance", "nll", "measured", "screened", "errors", "margins", "chosen")
        joined: dict[str, Any] = {name: {**getattr(self, name), **getattr(later, name)} for name in names}
        return replace(self, **joined, disturbed=self.disturbed or later.disturbed)
