"""The history of the labels of a manifest: one JSON object per line, to which is only ever added.

time        when, UTC
event       predicted or corrected
case        id
structures  structure -> {"state", "before" (null: not known), "changed": voxels that differ, "voxels" it has now}
labels      the label file that was written, relative to the folder
before      the label file that the case had until then; null if none. It is kept
model       id of the model that predicted
file, sha256        of the correction as it came
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labelwise.atomic import explained

HISTORY = "history.jsonl"


def append_history(folder: Path, events: Iterable[Mapping[str, Any]]) -> None:
    """Add events, each a whole line.

    Errors
        ResourceError   the file cannot be written
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = "".join(json.dumps({"time": now, **event}, ensure_ascii=False) + "\n" for event in events)
    with explained(folder / HISTORY), (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(lines)
