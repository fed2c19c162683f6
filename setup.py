"""README.md as package indexes show it: what it links to by a path of the repository, by its address."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Homepage"]


def addressed(text: str) -> str:
    """Markdown whose links and images go to the repository; those within the page, and addresses, stay."""
    return re.sub(r"(!?)(\[[^]]*\])\((?!https?:|#)([^)]+)\)", lambda found: _link(*found.groups()), text)


def _link(mark: str, label: str, path: str) -> str:
    return f"{mark}{label}({HOME}/{'raw' if mark else 'blob'}/main/{path})"


if __name__ == "__main__":
    setup(
        long_description=addressed((ROOT / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
