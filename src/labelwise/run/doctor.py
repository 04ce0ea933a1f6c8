"""`doctor`: whether this machine can train."""

from __future__ import annotations

import re
import shutil
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelwise.devices import choose_device, has_bf16
from labelwise.run.environment import environment

__all__ = ["doctor"]

DEVELOPMENT = ("dev", "docs")  # extras for those who change the package


def doctor() -> dict[str, Any]:
    """Versions, devices, free disk, optional extras, and how fast a 3D convolution is in float32 and bf16."""
    device = choose_device("auto")
    facts = environment()
    times = {
        "float32": _convolution_ms(device, torch.float32),
        "bf16": _convolution_ms(device, torch.bfloat16),
    }
    native = has_bf16(device.type)
    return {
        **{f"version {name}": version for name, version in facts.pop("versions").items()},
        **facts,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        **{f"extra {name}": _state(packages) for name, packages in extras().items()},
        "convolution_float32_ms": times["float32"],
        "convolution_bf16_ms": times["bf16"],
        "bf16_native": native,
        "precision_auto": "bf16" if native else "float32",
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


def _advice(native: bool, times: dict[str, float]) -> str:
    if native and times["bf16"] > times["float32"]:
        return "bf16 is slower than float32 here: set device.precision = 'float32' and check the torch build"
    return "nothing to change"


def _convolution_ms(device: torch.device, dtype: torch.dtype) -> float:
    """Median milliseconds of one forward and backward of a 3D convolution as networks use it."""
    convolution = nn.Conv3d(16, 16, 3, padding=1, device=device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    images = torch.randn(2, 16, 32, 32, 32, device=device).contiguous(memory_format=torch.channels_last_3d)
    milliseconds = []
    for _ in range(8):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
            convolution(images).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(milliseconds[3:]), 2)
