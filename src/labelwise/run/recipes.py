"""`recipes`: the recipes that come with the package."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from labelwise.config import shipped_recipes

__all__ = ["recipes"]


def recipes() -> list[dict[str, str]]:
    """One row for each recipe that comes with the package: its name for `load_config`, what it is, and its file."""
    return [
        {"name": name, "title": _title(file), "file": str(file)} for name, file in shipped_recipes().items()
    ]


def _title(file: Path) -> str:
    """The first sentence of the words on top."""
    comments = (line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines())
    words = " ".join(takewhile(bool, comments))
    return re.split(r"(?<=\.)\s+", words, maxsplit=1)[0]
