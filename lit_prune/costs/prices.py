"""The price of a model and of its sublayers: the numbers that a budget is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lit_prune.anatomy import Anatomy, find_sublayers, language_model
from lit_prune.costs.counts import count_costs
from lit_prune.costs.latency import Latency, measure_latency
from lit_prune.errors import MeasureError
from lit_prune.plan import SublayerId
from lit_prune.searches import unit_options
from lit_prune.surgery import require_understood


@dataclass(frozen=True)
class Prices:
    """The price of a model and of its sublayers, in one unit.

    Attributes:
        of: One of `UNITS`.
        total: The price of the whole model before the first removal.
        unit: What one of the unit is, in words.
        sublayers: The price of each sublayer; None for parameters, where norms that are shared go with the last
            sublayer of a block.
        conditions: The conditions under which they were counted or measured, in plain types.
    """

    of: str
    total: float
    unit: str
    sublayers: Mapping[SublayerId, float] | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def in_parameters(cls, anatomy: Anatomy) -> Prices:
        """Prices in parameters; embeddings and head are part of the total."""
        return cls("params", anatomy.num_parameters, "parameters")

    @property
    def measured(self) -> dict[str, Any]:
        """What another measurement would not give again, in plain types: seconds, but nothing that is counted."""
        plain = self.to_dict()
        return {name: plain[name] for name in ("conditions", "total", "sublayers")} if self.of == "latency" else {}

    def to_dict(self) -> dict[str, Any]:
        """The prices in plain types, for checkpoints."""
        priced = None if self.sublayers is None else {str(name): value for name, value in self.sublayers.items()}
        return {**vars(self), "sublayers": priced, "conditions": dict(self.conditions)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prices:
        """The inverse of `to_dict`."""
        priced = data["sublayers"]
        found = None if priced is None else {SublayerId.parse(name): value for name, value in priced.items()}
        return cls(**{**data, "sublayers": found})

    def freed(self, anatomy: Anatomy, sublayers: Iterable[SublayerId]) -> float:
        """What is saved when some sublayers go together."""
        if self.sublayers is None:
            return anatomy.num_freed(sublayers)
        return sum(self.sublayers[sublayer] for sublayer in sublayers)


def price(
    model: nn.Module, of: str | Mapping[str, Any], *, num_positions: int, known: Mapping[str, Any] | None = None
) -> Prices:
    """Count or measure what the model and its sublayers cost.

    Args:
        model: A causal language model.
        of: `params`; `flops` or `kv_cache` of one token after `num_positions` others; `latency`, perhaps as a mapping
            with the options of `measure_latency` (`length` is `num_positions` unless given).
        num_positions: The length of a calibration sequence.
        known: What `Prices.measured` said earlier; under the same conditions nothing is measured again.

    Raises:
        LitPruneError: The unit or an option is unknown.
        MeasureError: There is nothing to pay in that unit, or it cannot be measured.
    """
    options = unit_options(of)
    model, name = language_model(model), options.pop("name")
    if name == "params":
        return Prices.in_parameters(find_sublayers(model))
    if name == "latency":
        return _latency(model, {"phase": "decode", "batch": 1, "length": num_positions, **options}, known or {})
    costs, conditions = count_costs(model, num_positions), {"num_positions": num_positions}
    if name == "flops":
        return Prices(name, costs.total_flops, f"FLOP of a token after {num_positions:,}", costs.flops, conditions)
    if not costs.total_kv_elements:
        raise MeasureError("this model keeps no KV cache, so none of it can be saved; ask for an amount of params")
    return Prices(name, costs.total_kv_elements, "numbers that a token adds to the KV cache", costs.kv_elements)


def _latency(model: Any, options: dict[str, Any], known: Mapping[str, Any]) -> Prices:
    device, dtype = str(model.device), str(model.dtype).removeprefix("torch.")
    conditions = {**options, "device": device, "dtype": dtype}
    if known.get("conditions") == conditions:
        found = Latency(known["total"], {SublayerId.parse(name): value for name, value in known["sublayers"].items()})
    else:
        require_understood(model)
        found = measure_latency(model, **options)
    phase, sizes = options["phase"], f"{options['batch']} x {options['length']:,}"
    what = f"seconds to read {sizes} tokens" if phase == "prefill" else f"seconds to write a token, the last of {sizes}"
    unit = f"{what} ({device}, {dtype})"
    return Prices("latency", found.total, unit, found.sublayers, conditions)
