"""One training step, side by side in one run: precision and memory layout, and the loop's overhead.

    python benchmarks/training_step.py

1. A V-Net step in bf16 with the channels last (what precision "auto" gives on this hardware) against the same
   network in float32 and the default layout. Goal: 3 times faster where the CPU has bf16.
2. `train.loop.fit` with the loader, augmentation, log and checkpoints against the bare forward, loss, backward
   and optimiser step of the same network on batches in memory. Goal: at most 5 % more. Both compute the coarsest
   scale as `SafeConvolutions` does; what that costs is the difference to the third row.

Processor seconds of one thread, so that other work on the machine does not count; variants take turns.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from metadata import write_result

from labelwise.cohort.manifest import read_manifest
from labelwise.console import silent
from labelwise.devices import SafeConvolutions, has_bf16, use_fast_layout
from labelwise.loading.augment import AugmentConfig
from labelwise.loading.loader import batches
from labelwise.loading.prepare import prepare
from labelwise.loading.sampling import SamplingConfig
from labelwise.losses.partial import supervised
from labelwise.methods import find_method
from labelwise.methods.base import NetFactory
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.train.distributed import DeviceConfig, connect
from labelwise.train.loop import LoopConfig, Stage, fit
from labelwise.types import Batch, LabelSpace

PATCH = (64, 64, 48)
ORGANS = ("liver", "spleen", "kidneys", "pancreas")
SPACE = LabelSpace(("background", *ORGANS))


def a_batch(cases: int = 2, patch: tuple[int, ...] = PATCH, *, unlabelled: int = 0) -> Batch:
    """Noise with labels; the last `unlabelled` cases know nothing."""
    torch.manual_seed(0)
    labels = torch.randint(0, SPACE.num_classes, (cases, *patch))
    annotated = torch.ones(cases, SPACE.num_classes, dtype=torch.bool)
    if unlabelled:
        labels[-unlabelled:], annotated[-unlabelled:] = 255, False
    images = torch.randn(cases, 1, *patch)
    return Batch(images, labels, annotated, (), {}, tuple(tuple(row) for row in annotated.tolist()))


def factory(name: str = "vnet", width: int = 16) -> NetFactory:
    """Networks of the size that the benchmark is about."""
    return NetFactory(name, {"width": width}, dims=3, in_channels=1, num_classes=SPACE.num_classes)


def taking_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median and range of the processor seconds of each variant; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number, (name, work) in itertools.product(range(rounds + 1), variants.items()):
        start = time.process_time()
        work()
        if number:
            seconds[name].append(time.process_time() - start)
    return {
        name: {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        for name, values in seconds.items()
    }


def precision_step(bf16: bool) -> Callable[[], None]:
    """A step of the LA benchmark's V-Net."""
    network = factory().network()
    batch = a_batch()
    images = batch.images
    if bf16:
        use_fast_layout(network)
        images = images.contiguous(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = supervised(network(images), batch.labels, batch.annotated)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def precision() -> dict[str, Any]:
    """Part 1."""
    variants = {
        "float32, default layout": precision_step(bf16=False),
        "bf16, channels last": precision_step(bf16=True),
    }
    times = taking_turns(variants, rounds=5)
    factor = times["float32, default layout"]["median_s"] / times["bf16, channels last"]["median_s"]
    return {
        "network": "V-Net, width 16, 2 patches of 64x64x48",
        "cpu_has_bf16": has_bf16("cpu"),
        "step": times,
        "times_faster": round(factor, 2),
        "goal": 3,
    }


def overhead() -> dict[str, Any]:
    """Part 2."""
    steps, patch = 30, (48, 48, 32)  # a checkpoint after a quarter of a minute; the default is one a minute
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_cohort(folder, SyntheticConfig(cases_per_site=2, unlabelled=0, validation=0, test=0))
        store = prepare(read_manifest(folder), Path(folder) / "store", workers=1).store
        sampling = SamplingConfig(patch_size=patch, labelled_cases=4, unlabelled_cases=0)
        fabric = connect(DeviceConfig(device="cpu"))
        ready = a_batch(4, patch)
        number = itertools.count()

        def stored(start: int) -> Iterator[Batch]:
            cases = manifest.split("train")
            space, augment = manifest.label_space, AugmentConfig()
            return batches(store, cases, space, sampling, augment, seed=0, start=start, total=steps)

        def loop(from_store: bool) -> None:
            method = find_method("supervised")(factory("vnet", 16), find_method("supervised").Config())
            stage = Stage(
                method=method,
                batches=stored if from_store else lambda start: itertools.repeat(ready),
                steps=steps,
                folder=Path(folder) / f"run_{next(number)}",
                settings={},
            )
            fit(stage, LoopConfig(steps=(steps,), log_every=5), fabric, silent)

        def bare(convolutions: Callable[[], AbstractContextManager[object]]) -> None:
            network = factory("vnet", 16).network()
            use_fast_layout(network)
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
            for _ in range(steps):
                with convolutions():
                    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu")):
                        loss = supervised(network(ready.images), ready.labels, ready.annotated)
                    torch.autograd.backward(loss)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        variants = {
            "bare": lambda: bare(SafeConvolutions),
            # Its coarsest scale is thinner than the kernels: bf16 is quicker there, and the gradients are wrong.
            "bare, gradients of the coarsest scale wrong": lambda: bare(nullcontext),
            "loop, batches in memory": lambda: loop(from_store=False),
            "loop, batches from the store": lambda: loop(from_store=True),
        }
        times = taking_turns(variants, rounds=2)
    base = times["bare"]["median_s"]
    return {
        "network": f"V-Net, width 16, 4 patches of {'x'.join(map(str, patch))}, {steps} steps with one checkpoint",
        "seconds": times,
        "overhead_percent": {
            name: round(100 * (row["median_s"] / base - 1), 1)
            for name, row in times.items()
            if name.startswith("loop")
        },
        "goal_percent": 5,
    }


def main() -> None:
    torch.set_num_threads(1)
    result = {"precision": precision(), "loop_overhead": overhead()}
    print(write_result("training_step", {"unit": "processor seconds of one thread", **result}))


if __name__ == "__main__":
    main()
