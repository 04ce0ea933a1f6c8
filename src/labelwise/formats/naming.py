"""What a label file says about the meaning of its values: in its header, or in the record that lies beside it.

One answer for everybody who reads labels: import, check, train, evaluate, convert, measure and show. A class that no
file names is known by the value table of its data set (`labelwise.cohort.data_set`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelwise.documents import read_json
from labelwise.errors import DataError
from labelwise.formats import stored

_NOTHING_SAID = re.compile(r"(?i)(segment|label|region|roi|class|value|l)?[ _-]*\d*")
_LARGEST_RECORD = 10_000_000  # bytes


def value_names(path: Path) -> dict[int, str]:
    """Label value -> name, as the header or the record of a label file says; empty if neither says anything.

    Names that say nothing, such as Segment_1, are left out. The record is NAME.json beside NAME.nii.gz, as `predict`
    writes it: {"classes": {"1": "liver"}}.

    Errors
        DataError   a damaged file; header and record contradict each other
    """
    header, record = stored.value_names(path), record_of(path)
    recorded = _recorded(record)
    for value in sorted(header.keys() & recorded.keys()):
        if header[value] != recorded[value]:
            raise DataError(
                "the label file and the record beside it contradict each other",
                file=path,
                found=f"value {value} is '{header[value]}' in its header, '{recorded[value]}' in {record.name}",
                do="delete the one that is wrong: the record, or the file",
                code="record-contradicts",
            )
    known = header or recorded
    return {value: name for value, name in known.items() if not _NOTHING_SAID.fullmatch(name)}


def record_of(path: Path) -> Path:
    """Where the record of a label file lies: CASE.json for CASE.nii.gz, CASE.seg.nrrd, CASE.seg.dcm, ..."""
    return path.with_name(f"{case_of(path)}.json")


def case_of(path: Path) -> str:
    """The case that a label file is named after: its name without the endings of label formats."""
    return re.sub(r"(?i)(\.seg|\.rtstruct)?\.dcm$", "", stored.stem(path))


def recorded_intensity(path: Path) -> str:
    """What the intensities of the scan were that labels were predicted from, as their record says; else empty."""
    record = _read(record_of(path))
    return str(record.get("intensity") or record.get("modality") or "")  # its name in older records


def _recorded(file: Path) -> Mapping[int, str]:
    """The classes of a record; nothing if there is none, or the file is about something else."""
    try:
        classes = _read(file)["classes"]
        return {int(value): name for value, name in classes.items() if isinstance(name, str) and name}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_RECORD:
            return {}
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def file_name(name: str) -> str:
    """A class name without what cannot stand in a file name."""
    return "".join(sign if sign.isalnum() or sign in "-_. ()" else "_" for sign in name)
