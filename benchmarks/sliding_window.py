"""Sliding-window inference beside MONAI's: processor seconds, and peak memory on top of network and image.

    python benchmarks/sliding_window.py            # a few minutes on two cores
    python benchmarks/sliding_window.py --quick    # seconds; writes nothing

Every run is a process of its own, because the peak of a process never falls. Both sides get the same
network, image, windows, Gaussian weights and float32; MONAI's scores become labels by argmax, as its users
do it. One thread, and seconds of processor time, so that a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from metadata import write_result
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from labelwise.infer.sliding_window import InferenceConfig, predict_labels

PATCH = (64, 64, 64)
SIZES = ((128, 128, 192), (128, 128, 384))  # three and six patches long
QUICK_SIZES = ((80, 80, 128),)
CLASSES = (3, 60)
REPETITIONS = 3
GOALS = {"time_ratio": 1.0, "memory_ratio_at_60_classes_in_a_scan_of_six_patches": 0.25}


def small_network(num_classes: int) -> nn.Module:
    """A network so small that the time around it shows."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, num_classes, 1), nn.Softmax(dim=1)
    ).eval()


def ours(network: nn.Module, image: Tensor, num_classes: int) -> Any:
    config = InferenceConfig(precision="float32")
    return predict_labels(network, image, PATCH, num_classes=num_classes, config=config, device="cpu")


def monai(network: nn.Module, image: Tensor, num_classes: int) -> Any:
    with torch.inference_mode():
        scores = sliding_window_inference(image[None], PATCH, 1, network, overlap=0.5, mode="gaussian")
        return scores.argmax(dim=1)[0].to(torch.uint8).numpy()


IMPLEMENTATIONS: dict[str, Callable[[nn.Module, Tensor, int], Any]] = {"ours": ours, "monai": monai}


def measure(implementation: str, num_classes: int, size: tuple[int, ...], output: Path) -> dict[str, float]:
    """Processor seconds and peak extra MiB of one prediction in this process; the labels go to `output`."""
    torch.set_num_threads(1)
    predict = IMPLEMENTATIONS[implementation]
    network = small_network(num_classes)
    predict(network, torch.zeros(1, *PATCH), num_classes)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    labels = predict(network, image, num_classes)
    seconds = time.process_time() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    np.save(output, labels)
    return {"cpu_seconds": seconds, "extra_mib": (peak - before) / 2**20}


def measure_in_new_process(
    implementation: str, num_classes: int, size: tuple[int, ...], output: Path
) -> dict[str, float]:
    arguments = ["--only", implementation, str(output), str(num_classes), *map(str, size)]
    command = [sys.executable, str(Path(__file__)), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def compare(num_classes: int, size: tuple[int, ...], repetitions: int) -> dict[str, Any]:
    """One row of the result: medians of both sides, measured in turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in IMPLEMENTATIONS}
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: Path(folder) / f"{name}.npy" for name in IMPLEMENTATIONS}
        for _ in range(repetitions):
            for name, output in outputs.items():
                runs[name].append(measure_in_new_process(name, num_classes, size, output))
        first, second = (np.load(output) for output in outputs.values())
        different = int((first != second).sum())
    row: dict[str, Any] = {"classes": num_classes, "size": list(size), "patch": list(PATCH)}
    for name, results in runs.items():
        times = [round(run["cpu_seconds"], 2) for run in results]
        row[name] = {
            "cpu_seconds": median(times),
            "cpu_seconds_range": [min(times), max(times)],
            "extra_mib": round(median(run["extra_mib"] for run in results)),
        }
    row["time_ratio"] = round(row["ours"]["cpu_seconds"] / row["monai"]["cpu_seconds"], 3)
    row["memory_ratio"] = round(row["ours"]["extra_mib"] / row["monai"]["extra_mib"], 3)
    row["different_labels"] = f"{different} of {first.size}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Sliding-window inference beside MONAI's.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        name, output, num_classes, *size = options.only
        print(json.dumps(measure(name, int(num_classes), tuple(map(int, size)), Path(output))))
        return
    torch.set_num_threads(1)  # as in the measured processes; for the record
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        for num_classes in CLASSES:
            rows.append(compare(num_classes, size, 1 if options.quick else REPETITIONS))
            print(json.dumps(rows[-1]), flush=True)
    if not options.quick:
        print(write_result("sliding_window", {"goals": GOALS, "rows": rows}))


if __name__ == "__main__":
    main()
