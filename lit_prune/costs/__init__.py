"""What sublayers cost: parameters, FLOPs, cache and milliseconds, and prices in the unit of a budget."""

from lit_prune.costs.counts import NORMALISERS, Costs, candidate_shares, count_costs
from lit_prune.costs.inventory import Inventory, SublayerEntry, take_inventory
from lit_prune.costs.latency import WARMUP, Latency, inference_options, kinds_of, measure_latency, measure_passes, now
from lit_prune.costs.prices import Prices, price

__all__ = [
    "NORMALISERS",
    "WARMUP",
    "Costs",
    "Inventory",
    "Latency",
    "Prices",
    "SublayerEntry",
    "candidate_shares",
    "count_costs",
    "inference_options",
    "kinds_of",
    "measure_latency",
    "measure_passes",
    "now",
    "price",
    "take_inventory",
]
