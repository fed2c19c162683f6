"""One pass over the batches for everything but the impact, which takes a what-if loss for every sublayer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.anatomy import Anatomy, find_sublayers
from lit_prune.errors import MeasureError
from lit_prune.evaluation.lens import lens_logits, lens_sums
from lit_prune.evaluation.recorder import StreamRecorder, Written
from lit_prune.evaluation.stream_figures import Analysis, DepthFigures, PathFigures, SublayerFigures
from lit_prune.evaluation.unraveled import BIASES, EMBEDDING, Unraveler
from lit_prune.loading.devices import exact_dtype
from lit_prune.measure import IGNORED, WhatIf, counted_positions, labels_of, logits_of, next_labels
from lit_prune.plan import Candidate
from lit_prune.scorers import SCORERS

SUBLAYER = ("input_norm", "output_norm", "similarity")
DEPTH = ("norm", "loss", "agreement", "kl")
PATH = ("logit", "margin", "share")
"""The figures of sublayers, of depths and of paths, as their classes have them."""

STREAM = (*SUBLAYER, "norm")
"""Figures that are means over all tokens; the others are means over predicted ones."""

TOLERANCE = 0.05
"""How far the paths may be from the head's own logit, as a share of it: rounding of short dtypes stays below."""

Key = tuple[str, str]
"""A place (sublayer, depth, path; empty for the whole model) and a figure."""


def analyse(what_if: WhatIf, *, impact: bool = True, name: str = "") -> Analysis:
    """Measure how the residual stream of a model comes about, and what each sublayer is worth.

    Figures after "Rethinking the Impact of Heterogeneous Sublayers in Transformers". All but the impact come from one
    pass over the batches. One batch's states are held at a time (as many as sublayers, in the model's dtype); final
    norm and head run once more for every depth.

    Args:
        what_if: The model and batches, perhaps of one process of several.
        impact: Whether to measure RI and NRI, a what-if loss for every sublayer.
        name: The model's name, for readers.

    Raises:
        MeasureError: A figure is NaN or infinite.
    """
    anatomy = find_sublayers(what_if.model)
    measured = _Pass(what_if.model, anatomy)
    with what_if.running():
        for batch in what_if.passes():
            measured.run(batch)
    means = _means(what_if, measured.sums)
    ri, nri = _impact(what_if, anatomy) if impact else ({}, {})
    names, depths = [str(sublayer.id) for sublayer in anatomy.sublayers], _depths(anatomy)

    def figures(place: str, chosen: Sequence[str]) -> dict[str, float]:
        return {figure: means[place, figure] for figure in chosen}

    is_split = means["", "gap"] <= TOLERANCE * abs(means["", "logit"])
    places = (EMBEDDING, *names, BIASES) if is_split else ()
    note = "The logit of this model is not the sum of what its sublayers add: the unraveled view is left out."
    return Analysis(
        model=name,
        num_blocks=anatomy.num_blocks,
        num_parameters=anatomy.num_parameters,
        num_tokens=int(means["", "tokens"]),
        num_predicted=int(means["", "predicted"]),
        loss=means[depths[-1], "loss"],
        logit=means["", "logit"],
        sublayers=tuple(
            SublayerFigures(place, **figures(place, SUBLAYER), ri=ri.get(place), nri=nri.get(place)) for place in names
        ),
        depths=tuple(DepthFigures(place, **figures(place, DEPTH)) for place in depths),
        paths=tuple(PathFigures(place, **figures(place, PATH)) for place in places),
        notes=() if is_split else (note,),
    )


class _Pass:
    """Sums of every figure, batch by batch, with the same keys in every process, whatever its batches hold."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self.model = model
        self.anatomy = anatomy
        self.unraveler = Unraveler(model)
        self.recorder = StreamRecorder(model, anatomy)
        names = [str(sublayer.id) for sublayer in anatomy.sublayers]
        keys = [("", figure) for figure in ("tokens", "predicted", "logit", "gap")]
        for places, figures in (names, SUBLAYER), (_depths(anatomy), DEPTH), ((EMBEDDING, *names, BIASES), PATH):
            keys += itertools.product(places, figures)
        self.sums = dict.fromkeys(keys, 0.0)

    def run(self, batch: Mapping[str, Tensor]) -> None:
        """Add the figures of a batch on the model's device."""
        counted, labels = counted_positions(batch), labels_of(batch)
        targets = next_labels(labels)
        with self.recorder.recording(labels.shape):
            logits = logits_of(self.model, batch)
        # Padding ahead of a text predicts its first token, from nothing.
        predicted = ((targets != IGNORED) & counted).to(logits.device)
        self.sums["", "tokens"] += int(counted.sum())
        self.sums["", "predicted"] += int(predicted.sum())
        self._add_stream(counted)
        self._add_lens(batch, logits, predicted, targets.to(logits.device)[predicted])
        self._add_paths(logits, predicted)

    def _add_stream(self, mask: Tensor) -> None:
        for event in self.recorder.events:
            if isinstance(event, Written):
                here = mask.to(event.before.device)
                before, added = event.before[here].float(), event.added(here)
                similarity = F.cosine_similarity(before, before + added, dim=-1)
                self._add(str(event.sublayer), SUBLAYER, (before.norm(dim=-1), added.norm(dim=-1), similarity))
        for depth, state in zip(_depths(self.anatomy), self.recorder.states, strict=True):
            self._add(depth, ["norm"], [state[mask.to(state.device)].float().norm(dim=-1)])

    def _add_lens(self, batch: Mapping[str, Tensor], logits: Tensor, mask: Tensor, targets: Tensor) -> None:
        blocks = list(self.anatomy.block_list(self.model))
        early = lens_logits(self.model, batch, blocks, self.recorder.last_output, self.recorder.states[:-1])
        final = logits[mask]
        for depth, here in zip(_depths(self.anatomy), (*early, logits), strict=True):
            for figure, total in zip(DEPTH[1:], lens_sums(final, here[mask], targets), strict=True):
                self.sums[depth, figure] += float(total)

    def _add_paths(self, logits: Tensor, mask: Tensor) -> None:
        tokens = logits[mask].argmax(dim=-1)
        terms = self.unraveler.terms(self.recorder, mask, tokens)
        if terms is None:
            self.sums["", "gap"] = math.inf
            return
        logits, margins = torch.stack(list(terms.values()), dim=1)  # [terms, positions]
        logit = self.recorder.tail[-1].after[mask].gather(-1, tokens[:, None])[:, 0].float()  # what the head returned
        self._add("", ("logit", "gap"), (logit, (logits.sum(dim=0) - logit).abs()))
        shares = margins.abs() / margins.abs().sum(dim=0)
        for name, *rows in zip(terms, logits, margins, shares, strict=True):
            self._add(name, PATH, rows)

    def _add(self, place: str, figures: Sequence[str], rows: Sequence[Tensor]) -> None:
        for figure, row in zip(figures, rows, strict=True):
            self.sums[place, figure] += float(row.sum(dtype=exact_dtype(row.device)))


def _depths(anatomy: Anatomy) -> list[str]:
    return [EMBEDDING, *(f"block.{block}" for block in anatomy.blocks)]


def _means(what_if: WhatIf, sums: Mapping[Key, float]) -> dict[Key, float]:
    """Means over the batches of all processes; the two numbers of tokens stay what they are."""
    device = what_if.model.device
    own = torch.tensor(list(sums.values()), dtype=exact_dtype(device), device=device)
    totals = what_if.processes.sum(own).tolist()
    found = dict(zip(sums, totals, strict=True))
    numbers = {True: found["", "tokens"], False: found["", "predicted"]}
    means = {key: total / numbers[key[1] in STREAM] for key, total in found.items()}
    wrong = [place for (place, figure), mean in means.items() if figure != "gap" and not math.isfinite(mean)]
    if wrong:
        raise MeasureError(
            f"the figures of {wrong[0] or 'the logits'} are not finite: check the model's weights and dtype (float16 "
            "overflows; try bfloat16 or float32)"
        )
    return {**means, ("", "tokens"): numbers[True], ("", "predicted"): numbers[False]}


def _impact(what_if: WhatIf, anatomy: Anatomy) -> list[dict[str, float]]:
    candidates = [Candidate((sublayer.id,)) for sublayer in anatomy.sublayers]
    # The second asks for losses that the first has measured.
    scores = [SCORERS.create(scorer)(what_if, candidates, []) for scorer in ("ri", "nri")]
    return [{candidate.name: score for candidate, score in found.importance.items()} for found in scores]
