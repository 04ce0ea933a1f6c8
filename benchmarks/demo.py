"""The demo as it is shipped, timed and written down for the README.

python benchmarks/demo.py --work runs/demo_measured
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from metadata import write_result

from labelwise import console, run

MEAN = "mean over organs"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    with console.watch() as progress:
        result = run.demo(options.work, seed=options.seed, overwrite=True, progress=progress)
    seconds = time.perf_counter() - start
    found = result.comparison
    rows = {
        name: {
            "dice": {row: found.cells[name, row, "dice"].mean for row in found.rows},
            "hd95": found.cells[name, MEAN, "hd95"].mean,
        }
        for name in found.runs
    }
    difference = found.differences["supervised", MEAN, "dice"]
    write_result(
        "demo",
        {
            "seed": options.seed,
            "seconds": round(seconds, 1),
            "test_cases": len(found.cases),
            "organs": list(found.rows),
            "rows": rows,
            "supervised_minus_naive_dice": {
                "mean": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "goal": 0.15,
            },
        },
    )


if __name__ == "__main__":
    main()
