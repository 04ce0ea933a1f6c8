"""What stands beside a predicted label file: its model and settings, and its maps. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelwise.documents import read_json
from labelwise.formats import LABEL_FORMATS, record_of
from labelwise.formats.naming import file_name

# Scores below are the floor of a softmax: in millions of voxels they would outweigh a small structure.
NOTICED = 0.01
PROBABILITIES, ENTROPY = MAPS = ("probabilities", "entropy")


def map_paths(folder: Path, case: str, kind: str, classes: Sequence[str]) -> list[Path]:
    """Where the maps of a kind lie for a case, one for each class or one for all."""
    if kind == ENTROPY:
        return [folder / ENTROPY / f"{case}.nii.gz"]
    return [folder / PROBABILITIES / case / f"{file_name(name)}.nii.gz" for name in classes]


def told_beside(target: Path) -> dict[str, Any]:
    """What was written beside a label file; nothing if that cannot be read, or if it is none of ours."""
    if not any(target.name.endswith(end) for end in LABEL_FORMATS.values()):
        return {}
    return read_record(record_of(target))


def said_of(result: Path) -> list[dict[str, Any]]:
    """What was said about a scan and its result when it was segmented: code, what, do, and of flags their class."""
    found = told_beside(result).get("warnings")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def warnings_of(result: Path) -> list[str]:
    """The same in words."""
    return [str(each.get("what", "")) for each in said_of(result)]


def read_record(file: Path) -> dict[str, Any]:
    """The contents of a record; nothing if they cannot be read."""
    try:
        record = read_json(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def deciding(settings: Any) -> dict[str, Any]:
    """The settings that decide what is predicted; the others are for speed and memory."""
    chosen = settings if isinstance(settings, dict) else {}
    return {name: value for name, value in chosen.items() if name not in ("batch_size", "precision")}
