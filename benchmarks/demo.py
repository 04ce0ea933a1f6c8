"""The demo as it is shipped over several seeds, and the same scans with all their labels as the upper limit.

    python benchmarks/demo.py --work runs/demo_measured

A seed makes its own scans, its own weights and its own batches. Finished seeds are skipped, so the command can be
stopped and repeated; --collect only writes the result file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

from metadata import metadata, write_result
from sweep import MEAN, spread, summarise_scores

from labelwise import console, load_config, run
from labelwise.atomic import write_json
from labelwise.run.demo import SETTINGS, STEPS
from labelwise.synthetic.generate import SyntheticConfig, make_cohort

LIMIT = "supervised, all labels"


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One seed: the demo, timed if it was not begun before, and `supervised` on the completely annotated cohort."""
    begun, start = (folder / "demo").exists(), time.perf_counter()
    with console.watch() as progress:
        found = run.demo(folder / "demo", seed=seed, progress=progress).comparison
    seconds = None if begun else round(time.perf_counter() - start, 1)
    rows = {
        name: {
            "dice": {row: defined(found.cells[name, row, "dice"].mean) for row in found.rows},
            "hd95": defined(found.cells[name, MEAN, "hd95"].mean),
        }
        for name in found.runs
    }
    difference = found.differences["supervised", MEAN, "dice"]
    return {
        "seed": seed,
        "seconds": seconds,
        "test_cases": len(found.cases),
        "metadata": metadata(),
        "rows": rows | {LIMIT: upper_limit(folder / "all_labels", seed)},
        "supervised_minus_naive_dice": {
            "mean": difference.mean,
            "low": defined(difference.low),
            "high": defined(difference.high),
        },
    }


def defined(value: float) -> float | None:
    """None for a mean that is not given, because a structure was found in no scan."""
    return None if isnan(value) else value


def upper_limit(folder: Path, seed: int) -> dict[str, Any]:
    """Train, predict and evaluate `supervised` on the same scans with every organ annotated."""
    make_cohort(folder / "data", SyntheticConfig(seed=seed, full=True))
    changes = {**SETTINGS, "train.steps": [STEPS], "seed": seed}
    changes |= {"method.settings.squared_dice": True, "method.settings.dice_pooling": "batch"}
    config = load_config(None, changes, data=str(folder / "data"))
    with console.watch() as progress:
        run.train(config, folder / "run", progress=progress)
        run.predict(folder / "run", folder / "data", folder / "run" / "predictions", progress=progress)
        evaluated = run.evaluate(folder / "run", folder / "data", workers=1)
    scores = summarise_scores(evaluated.scores)
    return {"dice": scores["dice"], "hd95": scores["hd95"][MEAN]}


def over_seeds(cells: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of a row's numbers."""
    columns = {name: [cell["dice"][name] for cell in cells] for name in cells[0]["dice"]}
    columns["hd95"] = [cell["hd95"] for cell in cells]
    return {name: spread(values) for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true", help="only write the result file of finished seeds")
    options = parser.parse_args()
    files = {seed: options.work / f"seed{seed}" / "result.json" for seed in options.seeds}
    for seed, file in files.items():
        if not file.exists() and not options.collect:
            write_json(file, measure(file.parent, seed))
    seeds = [json.loads(file.read_text(encoding="utf-8")) for file in files.values() if file.exists()]
    rows = {name: over_seeds([seed["rows"][name] for seed in seeds]) for name in seeds[0]["rows"]}
    margins = [seed["supervised_minus_naive_dice"]["mean"] for seed in seeds]
    write_result(
        "demo",
        {"supervised_minus_naive_dice": {"seeds": margins, "goal": 0.15}, "rows": rows, "seeds": seeds},
    )


if __name__ == "__main__":
    main()
