"""What a report of many runs costs: time, memory and size of the page.

    python benchmarks/report_size.py --work /tmp/many_runs

The scores are made up: 60 runs, 200 cases of 100 patients, 14 classes, all metrics, and a training log of each run.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from metadata import write_result

from labelwise import run
from labelwise.evaluate.cases import METRICS
from labelwise.evaluate.scores import Score, write_scores

RUNS, CASES, CLASSES, LOGGED = 60, 200, 14, 200


def made_up(folder: Path, number: int) -> None:
    """A folder as a training and an evaluation leave it, without scans."""
    chance = np.random.default_rng(number)
    values = chance.uniform(0.5, 0.95, (CASES, CLASSES, len(METRICS)))
    volumes = np.random.default_rng(0).uniform(
        1, 500, (CASES, CLASSES)
    )  # of the reference: the same for all runs
    values[..., METRICS.index("reference_volume")] = volumes
    scores = [
        Score(f"case_{n:03d}", f"class_{c}", metric, float(values[n, c, m]), "ok", group=f"patient_{n // 2}")
        for n in range(CASES)
        for c in range(CLASSES)
        for m, metric in enumerate(METRICS)
    ]
    write_scores(folder / "scores.csv", scores)
    lines = [
        {
            "event": "train",
            "stage": 0,
            "step": step,
            "loss": 1 / step,
            "terms": {"a": 0.6 / step, "b": 0.4 / step},
        }
        for step in range(1, LOGGED + 1)
    ]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the made-up runs")
    work = parser.parse_args().work
    folders = [work / f"run_{number:02d}" for number in range(RUNS)]
    for number, folder in enumerate(folders):
        if not (folder / "log.jsonl").exists():
            made_up(folder, number)
    start, worked = time.perf_counter(), time.process_time()
    page = run.report(folders, work / "report.html")
    measured = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }
    print(measured)
    size = {"runs": RUNS, "cases": CASES, "classes": CLASSES, "metrics": len(METRICS)}
    write_result("report_size", {"size": size, "measured": measured})


if __name__ == "__main__":
    main()
