"""Seconds from the start of a process to the label file of one small scan, beside nnU-Net's; and what the imports cost.

    python benchmarks/cold_start.py --work runs/versus_nnunet

`--work` is the folder of benchmarks/versus_nnunet.py, whose finished trainings with complete labels predict here, each
with its own program, without mirror images, on one thread; nnU-Net's command takes as many as there are cores. Both
plan a 2D network for ACDC; the networks are not the same one, so the imports stand beside: that part is no network's.
The sides take turns. Processor seconds include those of child processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from metadata import write_result
from nnunet_peer import NNUNET
from versus_nnunet import TRAINER

REPETITIONS = 3


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Cold start of a prediction.")
    parser.add_argument("--work", type=Path, required=True, help="folder of versus_nnunet.py")
    work = parser.parse_args().work.resolve()
    programs, runs = work / "venv" / "bin", work / "runs"
    scan = min((work / "nnUNet_raw" / "Dataset001_complete" / "imagesTs").glob("*.nii.gz"))
    model = runs / "complete_supervised_seed0" / "training" / "model"
    variables = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "nnUNet_raw": str(work / "nnUNet_raw"),
        "nnUNet_preprocessed": str(work / "nnUNet_preprocessed"),
        "nnUNet_results": str(runs / "complete_nnunet_seed0" / "nnUNet_results"),
    }
    inference = "nnunetv2.inference.predict_from_raw_data"
    sides: dict[str, list[object]] = {
        "labelwise predict": [sys.executable, "-m", "labelwise", "predict", model, scan, "--device", "cpu"],
        "nnUNetv2_predict": [
            *(programs / "nnUNetv2_predict", "-d", 1, "-c", "2d", "-f", "all", "-tr", TRAINER),
            *("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta"),
        ],
        "import torch": [sys.executable, "-c", "import torch"],
        "import labelwise.run.predict": [sys.executable, "-c", "import labelwise.run.predict"],
        "import monai.bundle": [sys.executable, "-W", "ignore", "-c", "import monai.bundle"],
        f"import {inference}": [programs / "python", "-c", f"import {inference}"],
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        incoming = Path(folder) / "scan"
        incoming.mkdir()
        (incoming / scan.name).symlink_to(scan)
        for repetition in range(REPETITIONS):
            for name, command in sides.items():
                target = Path(folder) / f"{name.split()[0]}_{repetition}"
                to = {"labelwise predict": ["-o", target], "nnUNetv2_predict": ["-i", incoming, "-o", target]}
                measured[name].append(_seconds([*command, *to.get(name, [])], variables))
                print(f"{name:60} {measured[name][-1]}", flush=True)
                if name in to and not list(target.rglob("*.nii.gz")):
                    raise SystemExit(f"{name} left no label file")
    rows = {name: _summary(both) for name, both in measured.items()}
    for name, row in rows.items():
        print(f"{name:60} {row}")
    ours, theirs = (rows[name]["processor_seconds"]["least"] for name in list(sides)[:2])
    goal = {"times_of_nnunet_at_most": 1, "measured": round(ours / theirs, 3), "reached": ours <= theirs}
    facts = {"data": "ACDC, one frame of one patient", "peer": NNUNET, "repetitions": REPETITIONS}
    write_result("cold_start", {**facts, "load_at_end": os.getloadavg()[0], "goal": goal, "rows": rows})


def _seconds(command: Sequence[object], variables: Mapping[str, str]) -> tuple[float, float]:
    """Processor and elapsed seconds of a command and its children."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([str(word) for word in command], env=dict(variables), check=True, capture_output=True)
    after, elapsed = os.times(), time.perf_counter() - begun
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, elapsed


def _summary(both: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Least and median of each clock."""
    clocks = zip(("processor_seconds", "elapsed_seconds"), zip(*both, strict=True), strict=True)
    return {name: {"least": round(min(t), 2), "median": round(median(t), 2)} for name, t in clocks}


if __name__ == "__main__":
    main()
