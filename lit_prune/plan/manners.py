"""How a healed model goes on with text: what a plan says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

FIGURES = {"repetition": "repeated 4-grams", "ended": "texts ended", "agreement": "same next token as the teacher"}


def manners_in_words(manners: Mapping[str, Mapping[str, float | None]]) -> Iterator[tuple[str, str]]:
    """Of every figure its name, and what it was before a healing and after it, beside the teacher's.

    Example:
        >>> before, after, teacher = ({"repetition": share} for share in (0.5, 0.3, 0.25))
        >>> list(manners_in_words({"before": before, "after": after, "teacher": teacher}))
        [('repeated 4-grams', '50% -> 30%, teacher 25%')]
    """
    for figure, name in FIGURES.items():
        found = {when: seen[figure] for when, seen in manners.items() if seen.get(figure) is not None}
        if "before" in found and "after" in found:
            beside = f", teacher {found['teacher']:.0%}" if "teacher" in found and figure != "agreement" else ""
            yield name, f"{found['before']:.0%} -> {found['after']:.0%}{beside}"
