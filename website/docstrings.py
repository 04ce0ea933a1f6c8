"""Docstrings of this package as Markdown: sections without a colon, whose rows are columns of text.

Errors
    DataError   no such file
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# Sections that are lists of names and their meaning.
LISTS = {"Arguments": "Args", "Args": "Args", "Parameters": "Args", "Errors": "Raises", "Returns": "Returns"}
SECTION = re.compile(
    r"^(Arguments|Args|Parameters|Errors|Returns|Shapes|Source|Example)\n((?:^(?: +.*)?(?:\n|\Z))+)",
    re.MULTILINE,
)
ROW = re.compile(r"^(?: {4})(\S.*?)(?: {2,}(.*))?$")


class Docstrings(griffe.Extension):
    """Rewrites each docstring to the sections that griffe knows, before it reads them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the text of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring with its sections in the form of griffe's Google style; shapes stay a table of plain text."""
    return SECTION.sub(_section, text + "\n").rstrip()


def _section(match: re.Match[str]) -> str:
    name, body = match[1], match[2].rstrip()
    plain = re.sub(r"(?m)^ {4}", "", body)
    if name == "Shapes":
        return f"**Shapes**\n\n```text\n{plain}\n```\n\n"
    if name == "Example":
        return f"**Example**\n\n```pycon\n{plain}\n```\n\n"
    if name == "Source":
        return f"**Source:** {' '.join(plain.split())}\n\n"
    rows: list[list[str]] = []
    for line in body.splitlines():
        row = ROW.match(line)
        if row and row[2]:
            rows.append([row[1], row[2]])
        elif rows:
            rows[-1][1] += " " + line.strip()
    if LISTS[name] == "Args":  # one row may explain several parameters
        rows = [[what, meaning] for names, meaning in rows for what in names.split(", ")]
    lines = [f"    {what.strip()}: {meaning}" for what, meaning in rows]
    return "\n".join([f"{LISTS[name]}:", *lines]) + "\n\n"
