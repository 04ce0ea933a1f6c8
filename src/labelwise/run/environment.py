"""Where a run took place: versions, commit and hardware, without names of machines, users or folders."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from labelwise.engine import available_cpus

PACKAGES = (
    "labelwise",
    "torch",
    "numpy",
    "scipy",
    "monai",
    "lightning-fabric",
    "blosc2",
    "nibabel",
    "SimpleITK",
)


def environment() -> dict[str, Any]:
    """Versions of the packages that decide a result, the commit if run from a checkout, and the hardware."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": available_cpus(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package was imported from, if it was.

    A package that is merely installed may lie in the checkout of another project, whose commit says nothing.
    """
    package = Path(__file__).parents[1]
    top, commit = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    return commit if top and Path(top) / "src" / "labelwise" == package.resolve() else None


def _git(*arguments: str) -> str | None:
    """What git says about the folder of this file; None without git, or outside of a checkout."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=60,  # ends a hang, such as a network folder that does not answer
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
