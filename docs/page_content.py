"""What every page of the site gets beside its Markdown: links to papers and pictures, and room for words in tables.

A hook of mkdocs. Papers are named by their numbers on arXiv; a picture leads to its own file: it is small on a phone.
"""

from __future__ import annotations

import re
from typing import Any

PAPER = re.compile(r"<(a|code|pre|h1)\b.*?</\1>|\b(?:arXiv )?(\d\d(?:0[1-9]|1[0-2])\.\d{5})\b(?![^<>]*>)", re.DOTALL)
PICTURE = re.compile(r'<a\b.*?</a>|(<img [^>]*src="([^"]+)"[^>]*>)', re.DOTALL)
CODE = re.compile(r"<pre\b.*?</pre>|(?<=<code>)([^<]+)(?=</code>)", re.DOTALL)
HYPHENATED = re.compile(r"[^\s,]*-[^\s,]*")
LONGEST = 42
"""Characters of code that fit on one line of a phone."""
LONG = 40
"""Characters of a cell that want a column of some width."""


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Put them into a page, but no links into code or into other links."""
    html = PAPER.sub(lambda found: _link("https://arxiv.org/abs/" + found[2], found[0]) if found[2] else found[0], html)
    html = PICTURE.sub(lambda found: _link(found[2], found[1]) if found[1] else found[0], html)
    html = CODE.sub(lambda found: HYPHENATED.sub(_whole, found[1]) if found[1] else found[0], html)
    return re.sub(r"<table>.*?</table>", lambda found: _with_room(found[0]), html, flags=re.DOTALL)


def _link(address: str, shown: str) -> str:
    return f'<a href="{address}">{shown}</a>'


def _whole(found: re.Match[str]) -> str:
    return f'<span class="whole">{found[0]}</span>' if len(found[0]) <= LONGEST else found[0]


def _with_room(table: str) -> str:
    """Mark the cells of columns that hold sentences."""
    rows = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in table.split("<tr>")]
    texts = [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in rows]
    long = {column for row in texts for column, text in enumerate(row) if len(text) > LONG}

    def marked(row: str) -> str:
        cells = iter(range(len(row)))
        return re.sub("<td", lambda _: '<td class="long"' if next(cells) in long else "<td", row)

    return "<tr>".join(map(marked, table.split("<tr>")))
