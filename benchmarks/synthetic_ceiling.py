"""Is the built-in cohort hard enough? The demo's `supervised` against the same scans with all their labels.

python benchmarks/synthetic_ceiling.py --work runs/ceiling
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metadata import write_result

from labelwise import console, load_config, run
from labelwise.data.synthetic import SyntheticConfig, make_cohort
from labelwise.run.demonstration import SETTINGS, STEPS


def dice(folder: Path, full: bool, seed: int) -> dict[str, Any]:
    """Train, predict and evaluate on the cohort with one organ per site, or with all labels."""
    make_cohort(folder / "data", SyntheticConfig(seed=seed, full=full))
    config = load_config(None, {**SETTINGS, "train.steps": [STEPS], "seed": seed}, data=str(folder / "data"))
    with console.watch() as progress:
        run.train(config, folder / "run", progress=progress)
        run.predict(folder / "run", folder / "data", folder / "run" / "predictions", progress=progress)
        summary = run.evaluate(folder / "run", folder / "data", workers=1).summary
    organs = {row.class_name: row.mean for row in summary.classes if row.metric == "dice"}
    return organs | {"mean over organs": next(row.mean for row in summary.overall if row.metric == "dice")}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = {
        "one organ per site": dice(options.work / "partial", False, options.seed),
        "all labels": dice(options.work / "full", True, options.seed),
    }
    write_result(
        "synthetic_ceiling", {"seed": options.seed, "steps": STEPS, "method": "supervised", "dice": rows}
    )


if __name__ == "__main__":
    main()
