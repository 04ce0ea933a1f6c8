"""What every benchmark result carries: which code, which machine, which versions. No host name, no path.

from metadata import write_result
write_result("read_speed", {"median_ms": 1.2})          # benchmarks/results/read_speed.json
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelwise.atomic import write_json
from labelwise.engine import available_cpus

RESULTS = Path(__file__).parent / "results"


def metadata() -> dict[str, Any]:
    """Commit, date, processor, cores, accelerator and versions of this run."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def write_result(name: str, payload: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/<name>.json: the payload beside the metadata block. Returns the path."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"name": name, "metadata": metadata(), **payload})
    return path


def _commit() -> str:
    """Short hash of HEAD, with '-dirty' if the code differs from it; 'unknown' outside a repository.

    Results do not count: a sweep that has written one would otherwise soil the next.
    """
    try:
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results"
        )
        return _git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    answer = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
