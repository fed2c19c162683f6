"""Several prunings of one model, healed lightly, and the best of them to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def race(names: Sequence[str], merit: Callable[[str, int], float]) -> tuple[str, dict[str, list[float]]]:
    """Find out which of several models is the best to heal, by successive halving (Karnin et al., ICML 2013).

    All are healed up to the first validation, the better half up to the second, the better half of that up to the
    fourth, and so on. What was trained is not lost: who is healed further goes on from there.

    Args:
        names: The models.
        merit: Heals a model up to so many validations, and says what it is worth, the lower the better.

    Returns:
        The name of the best, and by name the merits that were found.
    """
    alive, validations = list(names), 1
    found: dict[str, list[float]] = {name: [] for name in names} if len(names) > 1 else {}
    while len(alive) > 1:
        for name in alive:
            found[name].append(merit(name, validations))
        alive = sorted(alive, key=lambda name: found[name][-1])[: (len(alive) + 1) // 2]
        validations *= 2
    return alive[0], found
