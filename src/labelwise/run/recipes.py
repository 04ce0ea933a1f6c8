"""`recipes`: the recipes that come with the package."""

from __future__ import annotations

from labelwise.config import shipped_recipes

__all__ = ["recipes"]


def recipes() -> list[dict[str, str]]:
    """One row for each recipe that comes with the package: its name for `load_config`, what it is, and its file."""
    rows = []
    for name, file in shipped_recipes().items():
        first = next(iter(file.read_text(encoding="utf-8").splitlines()), "")
        rows.append({"name": name, "title": first.removeprefix("#").strip(), "file": str(file)})
    return rows
