"""Processor seconds that the import behind each verb costs, beside those of what evaluation cannot do without.

    python benchmarks/import_time.py

Every import runs in a fresh interpreter; the smallest of several counts, and that of an empty interpreter is taken off.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from metadata import write_result

REPETITIONS = 3
BARE = "import numpy, scipy.ndimage, scipy.spatial, nibabel"
GOAL = 2  # times BARE, for what `evaluate` imports
VERBS = (
    "check", "compare", "convert", "demo", "doctor", "evaluate", "import_data", "measure", "methods", "plan",
    "predict", "prepare", "report", "simulate", "train",
)  # fmt: skip
HEAVY = ("torch", "lightning_fabric", "monai")
PROGRAM = """
import resource, sys
{statement}
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, *(name for name in {heavy} if name in sys.modules))
"""


def cost(statement: str) -> tuple[float, list[str]]:
    """Processor seconds of an interpreter that runs a statement, and which heavy packages it has imported."""
    program = PROGRAM.format(statement=statement, heavy=HEAVY)
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(REPETITIONS)
    ]
    return min(float(run[0]) for run in runs), runs[0][1:]


def main() -> None:
    """Measure, print and write."""
    empty, _ = cost("")
    bare = cost(BARE)[0] - empty
    rows: dict[str, dict[str, Any]] = {}
    for verb in VERBS:
        seconds, heavy = cost(f"import labelwise.run.{verb}")
        rows[verb] = {
            "seconds": round(seconds - empty, 3),
            "times_bare": round((seconds - empty) / bare, 2),
            "imports": heavy,
        }
        print(f"{verb:12} {rows[verb]}")
    result = {
        "statement": BARE,
        "bare_seconds": round(bare, 3),
        "goal": {"times_bare_of_evaluate": GOAL, "reached": rows["evaluate"]["times_bare"] <= GOAL},
        "verbs": rows,
    }
    write_result("import_time", result)


if __name__ == "__main__":
    main()
