"""What a training step of every method costs, side by side in one run.

    python benchmarks/step_time.py

1. A step of every registered method relative to `supervised`, with peak memory, on small 3D patches.
2. What the prototypes of `ltuda` and the contrast and distillation of `pl_seg` add to a step of the same network at
   the size that LTUDA was published with: four slices of 256x256, U-Net of 13.4 million weights. Goal: at most 25 %.
3. What the mixture of `guidednet` adds to a step of `cps`. Goal: at most 15 %.
4. What the distance maps of `sassnet` and `dtc` add to their steps, if no worker of the loader computes them while
   the step before runs. Goal: at most 10 %.

Processor seconds of one thread, so that other work on the machine does not count; variants take turns.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metadata import write_result
from training_step import SPACE, a_batch, factory, taking_turns

from labelwise.devices import SafeConvolutions, has_bf16, keep_freed_memory, use_fast_layout
from labelwise.methods import METHODS, find_method
from labelwise.methods.base import Method, NetFactory
from labelwise.types import IGNORE, Batch, Progress

HALFWAY = Progress(500, 1000)
WIDTH = 16  # of the networks in part 1
PUBLISHED_NET = "ltuda_unet"
ADDED = {
    "ltuda": ("ltuda_cda", {}),
    "pl_seg": ("pl_seg", {"contrast_weight": 0.0, "distillation_weight": 0.0}),
}


def step_of(method: Method, batch: Batch) -> Callable[[], None]:
    """A whole optimiser step in the middle of a training, in bf16 where the CPU has it."""
    use_fast_layout(method)
    groups = [{"params": group["params"]} for group in method.parameter_groups()]
    optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9)

    def step() -> None:
        with SafeConvolutions():
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu")):
                terms = method(batch, HALFWAY)
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(HALFWAY)

    return step


def network_of(name: str) -> str:
    """The V-Net, or the network that the method needs."""
    nets = find_method(name).card.nets
    return "vnet" if nets is None or "vnet" in nets else min(nets)


def small_step(name: str, settings: Mapping[str, Any] | None = None) -> Callable[[], None]:
    """Part 1: two labelled cases, and two unlabelled ones where the method learns from them."""
    kind = find_method(name)
    torch.manual_seed(0)
    classes = SPACE.num_classes
    nets = NetFactory(network_of(name), {"width": WIDTH}, dims=3, in_channels=1, num_classes=classes)
    method = kind(nets, kind.Config(**(settings or {})))
    sees_all = "none" in kind.card.learns_from
    batch = with_bodies(a_batch(4 if sees_all else 2, unlabelled=2 if sees_all else 0))
    return step_of(method, batch._replace(extra=targets_of(method, batch)))


def with_bodies(batch: Batch) -> Batch:
    """Organs that look like organs, one beside the other: the time of a distance map depends on the shape."""
    labels = torch.zeros_like(batch.labels)
    for organ in range(1, SPACE.num_classes):
        start = 12 * organ - 8
        labels[:, start : start + 10, 16:44, 12:36] = organ
    known = batch.annotated.any(dim=1).view(-1, *(1 for _ in labels.shape[1:]))
    return batch._replace(labels=torch.where(known, labels, IGNORE))


def targets_of(method: Method, batch: Batch) -> dict[str, torch.Tensor]:
    """What the loader would compute from the labels."""
    labels, annotated = batch.labels.numpy(), batch.annotated.numpy()
    spacing = np.ones((len(labels), labels.ndim - 1))
    return {
        name: torch.from_numpy(function(labels, annotated, spacing))
        for name, function in method.extra_targets().items()
    }


def peak_mib() -> float:
    """Peak memory of this process; getrusage would count the parent's, from before the program was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def methods() -> dict[str, Any]:
    """Part 1. Peak memory is that of a process of its own that makes two steps."""
    times = taking_turns({name: small_step(name) for name in METHODS}, rounds=3)
    base = times["supervised"]["median_s"]
    rows = {}
    for name, row in times.items():
        command = [sys.executable, __file__, "--peak", name]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        relative = round(row["median_s"] / base, 2)
        rows[name] = {**row, "relative": relative, "peak_mib": round(float(peak)), "net": network_of(name)}
    return {
        "network": f"width {WIDTH}, patches of 64x64x48; 2 labelled cases, and 2 unlabelled if the method uses them",
        "methods": rows,
    }


def partly_labelled_slices() -> Batch:
    """Four slices of 256x256, each annotated for one of four organs."""
    torch.manual_seed(0)
    classes = SPACE.num_classes
    annotated = torch.zeros(4, classes, dtype=torch.bool)
    annotated[range(4), range(1, classes)] = True
    labels = torch.zeros(4, 256, 256, dtype=torch.int64)
    for row in range(4):
        labels[row, 64:128, 64:128] = row + 1
    rows = tuple(tuple(row) for row in annotated.tolist())
    return Batch(torch.randn(4, 1, 256, 256), labels, annotated, (), {}, rows)


def published_step(name: str, settings: dict[str, Any]) -> Callable[[], None]:
    """Part 2."""
    kind = find_method(name)
    torch.manual_seed(0)
    nets = NetFactory(PUBLISHED_NET, {}, dims=2, in_channels=1, num_classes=SPACE.num_classes)
    return step_of(kind(nets, kind.Config(**settings)), partly_labelled_slices())


def added() -> dict[str, Any]:
    """Part 2, for each method and the same without its prototypes or its regularisers."""
    rows = {}
    for name, (without, settings) in ADDED.items():
        variants = {"with": published_step(name, {}), "without": published_step(without, settings)}
        times = taking_turns(variants, rounds=3)
        share = times["with"]["median_s"] / times["without"]["median_s"] - 1
        rows[name] = {
            "without": f"{without} {settings or ''}".strip(), "seconds": times, "added_percent": round(100 * share, 1)
        }  # fmt: skip
    return {
        "network": f"{PUBLISHED_NET}, 4 slices of 256x256, 5 classes",
        "goal_percent": 25,
        "methods": rows,
    }


def mixture() -> dict[str, Any]:
    """Part 3."""
    variants = {
        "cps": small_step("cps"),
        "guidednet": small_step("guidednet"),
        "guidednet without mixture": small_step("guidednet", {"mixture_weight": 0.0}),
    }
    times = taking_turns(variants, rounds=5)
    more = times["guidednet"]["median_s"] - times["guidednet without mixture"]["median_s"]
    share = round(100 * more / times["cps"]["median_s"], 1)
    return {"seconds": times, "added_to_cps_percent": share, "goal_percent": 15}


def distance_maps() -> dict[str, Any]:
    """Part 4."""
    rows = {}
    for name in ("sassnet", "dtc"):
        method = find_method(name)(factory(), find_method(name).Config())
        batch = with_bodies(a_batch(4, unlabelled=2))
        step = small_step(name)
        times = taking_turns({"step": step, "maps": partial(targets_of, method, batch)}, rounds=5)
        share = round(100 * times["maps"]["median_s"] / times["step"]["median_s"], 1)
        rows[name] = {"seconds": times, "added_percent": share}
    return {"organs": SPACE.num_classes - 1, "goal_percent": 10, "methods": rows}


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `train` does
    if "--peak" in sys.argv:
        step = small_step(sys.argv[-1])
        step()
        step()
        print(peak_mib())
        return
    result = {
        "methods": methods(),
        "added": added(),
        "mixture": mixture(),
        "distance_maps": distance_maps(),
    }
    print(write_result("step_time", {"unit": "processor seconds of one thread", **result}))


if __name__ == "__main__":
    main()
