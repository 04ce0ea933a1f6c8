"""Text, JSON and TOML that people and other programs wrote: with any byte order mark, and never too deep to read.

Cells of tables that spreadsheets would take for formulas are written with an apostrophe, and read without it.
"""

from __future__ import annotations

import codecs
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# By which editors and shells say how they encoded a file. UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that a spreadsheet computes


def decode(data: bytes) -> str:
    """Text in UTF-8, or in what its byte order mark says; UnicodeDecodeError if it is not.

    Without a mark it is UTF-16 if its first sign, which belongs to ASCII where words and numbers are written, is two
    bytes one of which is 0.
    """
    unmarked = {(True, False): "utf-16-be", (False, True): "utf-16-le"}
    without = unmarked.get((data[:1] == b"\0", data[1:2] == b"\0"), "utf-8")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), without)
    text = data.decode(encoding)
    if "\0" in text:
        place = data.index(0)
        raise UnicodeDecodeError(encoding, data, place, place + 1, "a sign of number 0, which no text has")
    return text


def parse_json(text: str) -> Any:
    """The value of a JSON text; a ValueError also where it is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text; a ValueError also where it is nested too deep."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file; OSError or ValueError if it cannot be read."""
    return parse_json(decode(path.read_bytes()))


def cells(row: Iterable[object]) -> list[str]:
    """The cells of a row of a table, none of which a spreadsheet computes; numbers stay numbers, None is empty."""
    return ["" if value is None else _escaped(str(value)) for value in row]


def cell(text: str) -> str:
    """A cell as it was before `cells`."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULAS) else text


def _escaped(text: str) -> str:
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
