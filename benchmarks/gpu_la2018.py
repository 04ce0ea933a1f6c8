"""The parts of benchmarks/gpu.sh that are Python: fewer scans for a test, and the result with the times of our loop.

python benchmarks/gpu_la2018.py shorten MANIFEST_FOLDER SCANS
python benchmarks/gpu_la2018.py collect WORK DEVICE FILE
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from metadata import metadata
from sweep import summarise_scores

from labelwise import load_config, run
from labelwise.atomic import write_json
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.loading.loader import batches
from labelwise.loading.store import Store
from labelwise.methods import find_method
from labelwise.run.prepare import store_folder
from labelwise.run.stages import settings_of
from labelwise.train.distributed import connect
from labelwise.train.loop import Stage, fit
from labelwise.types import Batch

METHODS = ("supervised", "self_training")
WARM_UP, STEPS = 5, 40


def shorten(folder: Path, scans: int) -> None:
    """Keep so many training and test scans of a manifest."""
    manifest = read_manifest(folder)
    kept = [case for split in ("train", "test") for case in manifest.split(split)[:scans]]
    write_manifest(manifest.replace_cases(kept), folder)


def collect(work: Path, device: str, file: Path) -> None:
    """Write scores, forecasts and times of both trainings."""
    rows: dict[str, Any] = {}
    for method in METHODS:
        folder = work / method
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        config = load_config(folder / "run.toml")
        scores = run.evaluate(folder, work / "la8", folder / "again.csv", workers=1).scores
        rows[method] = {
            "steps": list(config.train.steps),
            "forecast": plan["forecast"],
            "truth": plan["truth"],
            "scores": summarise_scores(scores),
            "loop": {
                f"{workers} workers": times_of_loop(folder, device, workers)
                for workers in sorted({0, config.workers})
            },
        }
        print(f"{method}: {config.train.steps} steps, {rows[method]['loop']}")
    protocol = {
        "data": "LA 2018, published pre-processed scans at 0.625 mm, the first 8 of train.list labelled, 20 test scans",
        "training": "both methods side by side on one device, one plan, as many steps as fit",
        "loop": f"median over {STEPS} steps of one training alone: a whole step, and the wait for its batch",
    }
    write_json(file, {"name": "gpu_la2018", "metadata": metadata(), "protocol": protocol, "rows": rows})


def times_of_loop(folder: Path, device: str, workers: int) -> dict[str, float]:
    """Milliseconds of a step of our loop and of its wait for a batch, with so many loader processes."""
    config = load_config(folder / "run.toml", {"device.device": device, "workers": workers})
    manifest = read_manifest(config.data)
    fabric = connect(config.device)
    store = Store(store_folder(config))
    first = store.case(manifest.split("train")[0].id)
    nets = config.nets(in_channels=first.modalities, num_classes=manifest.label_space.num_classes)
    kind = find_method(config.method.name)
    torch.manual_seed(config.seed)
    method = kind(nets, settings_of(kind, config))
    sampling = config.sampling
    if "none" not in kind.card.learns_from:
        sampling = replace(sampling, unlabelled_cases=0)
    waits: list[float] = []
    ends: list[float] = []

    def timed(start: int) -> Iterator[Batch]:
        source = batches(
            store, manifest.split("train"), manifest.label_space, sampling, config.augment,
            seed=config.seed, total=WARM_UP + STEPS, start=start, workers=workers,
            extra_targets=method.extra_targets(), device=fabric.device,
        )  # fmt: skip
        for _ in itertools.count():
            before = time.perf_counter()
            batch = next(source, None)
            waits.append(time.perf_counter() - before)
            if batch is None:
                return
            yield batch

    with tempfile.TemporaryDirectory() as target:
        stage = Stage(method, timed, WARM_UP + STEPS, Path(target), asdict(config.device), seed=config.seed)
        loop = replace(config.train, log_every=1, checkpoint_minutes=60.0)

        def note(task: str, done: int, total: int, message: str = "") -> None:
            ends.append(time.perf_counter())

        fit(stage, loop, fabric, note)
    steps = [after - before for before, after in itertools.pairwise(ends)][WARM_UP:]
    return {
        "step_ms": round(1000 * statistics.median(steps), 2),
        "wait_ms": round(1000 * statistics.median(waits[WARM_UP : WARM_UP + STEPS]), 2),
        "patches": sampling.batch_size,
    }


if __name__ == "__main__":
    if sys.argv[1] == "shorten":
        shorten(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        collect(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
