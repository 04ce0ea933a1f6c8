"""nnU-Net, for benchmarks that stand beside it: in a virtual environment of its own, or its modules in this process.

programs = environment(work / "venv")               # made if it is not there
loading = module(work, "nnunetv2.training.dataloading.nnunet_dataset")
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

NNUNET = "nnunetv2==2.8.1"


def environment(folder: Path) -> Path:
    """The programs of a virtual environment with nnU-Net and the torch of this one, made if it is not there."""
    programs = folder / "bin"
    if not (programs / "nnUNetv2_train").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [programs / "python", "-m", "pip", "install", "--quiet"]
        call([*pip, "--upgrade", "pip"])
        torch = version("torch")
        if subprocess.run([*map(str, pip), f"torch=={torch}"], check=False).returncode:
            call([*pip, f"torch=={torch.partition('+')[0]}"])  # builds for one platform are not everywhere
        call([*pip, NNUNET])
    return programs


def module(work: Path, name: str) -> Any:
    """A module of nnU-Net for this process, with the torch, NumPy and blosc2 of this process: both sides compute alike.

    Its environment lies in `work`/venv, and its modules are looked for last.
    """
    environment(work / "venv")
    for place in (work / "venv").glob("lib/python3*/site-packages"):
        if str(place) not in sys.path:
            sys.path.append(str(place))
    for variable in (
        "nnUNet_raw",
        "nnUNet_preprocessed",
        "nnUNet_results",
    ):  # or it prints that they are missing
        os.environ.setdefault(variable, str(work / variable))
    return importlib.import_module(name)


def call(words: Sequence[object], variables: Mapping[str, str] | None = None) -> None:
    """Run a program without its output; an error if it fails."""
    subprocess.run([str(word) for word in words], check=True, env=variables, stdout=subprocess.DEVNULL)
