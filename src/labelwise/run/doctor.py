"""`doctor`: whether this machine can train, and what limits it."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from labelwise.devices import choose_device, has_bf16, use_fast_layout
from labelwise.loading.store import StoredCase, write_case
from labelwise.nets.factory import NetFactory
from labelwise.preprocess.pipeline import Undo
from labelwise.run.environment import environment
from labelwise.types import Volume

__all__ = ["doctor"]

DEVELOPMENT = ("dev", "docs")  # extras for those who change the package
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
PATCHES, PATCH = 2, (64, 64, 48)  # of a training step in 3D
WRITTEN_BYTES = 32 * 2**20


def doctor() -> dict[str, Any]:
    """Versions, devices, disk, extras, how fast this machine computes and reads, and what limits a training."""
    device = choose_device("auto")
    facts = environment()
    native = has_bf16(device.type)
    times = {name: _convolution_ms(device, dtype) for name, dtype in PRECISIONS.items()}
    write, read = _disk()
    step = _step_ms(device, torch.bfloat16 if native else torch.float32)
    return {
        **{f"version {name}": version for name, version in facts.pop("versions").items()},
        **facts,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        **{f"extra {name}": _state(packages) for name, packages in extras().items()},
        **{f"matrices_{name}_gflops": _matrices_gflops(device, dtype) for name, dtype in PRECISIONS.items()},
        **{f"convolution_{name}_ms": value for name, value in times.items()},
        **{f"convolution_{name}_gflops": _convolution_gflops(value) for name, value in times.items()},
        "disk_write_mb_per_s": write,
        "patch_reading_ms": read,
        "training_step_ms": step,
        "bf16_native": native,
        "precision_auto": _automatic(device, native),
        "limit": _limit(device, step, PATCHES * read),
        "advice": _advice(native, times),
    }


def extras() -> dict[str, tuple[str, ...]]:
    """The optional extras of this package, and the packages that each needs, from its own metadata."""
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("labelwise") or ():
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra *== *['"]([\w.-]+)['"]""", requirement)
        if package and extra and extra[1] not in DEVELOPMENT:
            found.setdefault(extra[1], []).append(package[0])
    return {name: tuple(packages) for name, packages in found.items()}


def _state(packages: tuple[str, ...]) -> bool | str:
    """True if all are installed, else which are missing."""
    missing = [package for package in packages if not _is_installed(package)]
    return f"missing: {', '.join(missing)}" if missing else True


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _automatic(device: torch.device, native: bool) -> str:
    """What a training takes where its recipe leaves the precision to the hardware."""
    if native and device.type == "cpu":
        return "measured when a training begins"
    return "bf16" if native else "float32"


def _advice(native: bool, times: dict[str, float]) -> str:
    if native and times["bf16"] > times["float32"]:
        return "bf16 is slower than float32 here: set device.precision = 'float32' and check the torch build"
    return "nothing to change"


def _limit(device: torch.device, step: float, reading: float) -> str:
    """What a training waits for, if one process reads its patches while the device computes."""
    share = f"reading the {PATCHES} patches of a step takes {100 * reading / step:.0f} % of it"
    if reading > step:
        return f"the disk, or one process that unpacks: {share}; raise workers"
    return f"the {'processor' if device.type == 'cpu' else 'GPU'}: {share}"


def _convolution_ms(device: torch.device, dtype: torch.dtype) -> float:
    """Milliseconds of one forward and backward of a 3D convolution as networks use it."""
    convolution = nn.Conv3d(16, 16, 3, padding=1, device=device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    images = torch.randn(2, 16, 32, 32, 32, device=device).contiguous(memory_format=torch.channels_last_3d)

    def both_ways() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            convolution(images).float().square().mean().backward()

    return round(_milliseconds(both_ways, device), 2)


def _convolution_gflops(milliseconds: float) -> float:
    """A multiplication and an addition for each weight and voxel, forward and for the gradient of the weights."""
    operations = 2 * 2 * (16 * 16 * 27) * (2 * 32**3)
    return round(operations / milliseconds / 1e6, 1)


def _matrices_gflops(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Multiplications and additions per nanosecond of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return round(2 * size**3 / _milliseconds(lambda: left @ right, device) / 1e6, 1)


def _step_ms(device: torch.device, dtype: torch.dtype) -> float:
    """Milliseconds of a training step of the network that a plan chooses, on patches as large as for a processor."""
    settings = {"width": 8 if device.type == "cpu" else 32, "blocks": (1, 2, 2, 2)}
    nets = NetFactory("residual_unet", settings, dims=3, in_channels=1, num_classes=5)
    network = nets.network()
    use_fast_layout(network)
    network.to(device)
    images = torch.randn(PATCHES, 1, *PATCH, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            network(images).float().square().mean().backward()

    return round(_milliseconds(step, device, times=3), 1)


def _disk() -> tuple[float, float]:
    """MB per second of a file that is written through to the disk here, and milliseconds to read a stored patch."""
    here = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=here, prefix=".doctor") as folder:
        content = os.urandom(WRITTEN_BYTES)
        start = time.perf_counter()
        with (Path(folder) / "file").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        write = WRITTEN_BYTES / 1e6 / (time.perf_counter() - start)
        return round(write, 1), round(_patch_reading_ms(Path(folder) / "case"), 2)


def _patch_reading_ms(folder: Path) -> float:
    """Milliseconds to read and unpack a patch of a prepared scan, which lies in the memory of the system by then."""
    random = np.random.default_rng(0)
    shape = (160, 160, 96)
    image = Volume(random.normal(0, 20, (1, *shape)).round().astype(np.float32), np.eye(4))  # packs like HU
    rows = tuple(tuple(float(value) for value in row) for row in np.eye(4))
    write_case(folder, image, None, Undo(shape, cast(Any, rows), (0, 0, 0), shape, shape))
    case, patch = StoredCase(folder), np.empty((1, *PATCH), np.float32)

    def read() -> None:
        x, y, z = (int(random.integers(0, size - side + 1)) for size, side in zip(shape, PATCH, strict=True))
        case.read_image((x, y, z), patch)

    return _milliseconds(read, torch.device("cpu"))


def _milliseconds(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Median time of some work, after it was done once or twice."""
    taken = []
    for _ in range(times + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[2:])
