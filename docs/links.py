"""Links that every page of the site gets: from papers' numbers to arXiv, from pictures to their own files."""

from __future__ import annotations

import re
from typing import Any

PAPER = re.compile(r"<(a|code|pre|h1)\b.*?</\1>|\b(?:arXiv )?(\d\d(?:0[1-9]|1[0-2])\.\d{5})\b(?![^<>]*>)", re.DOTALL)
PICTURE = re.compile(r'<a\b.*?</a>|(<img [^>]*src="([^"]+)"[^>]*>)', re.DOTALL)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put the links into a page, but not into code or into links that are there."""
    html = PAPER.sub(lambda found: _link("https://arxiv.org/abs/" + found[2], found[0]) if found[2] else found[0], html)
    return PICTURE.sub(lambda found: _link(found[2], found[1]) if found[1] else found[0], html)


def _link(address: str, shown: str) -> str:
    return f'<a href="{address}">{shown}</a>'
