"""`export`: a manifest in the layout of another program."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelwise.atomic import atomic_path, write_json
from labelwise.cohort.manifest import absolute, read_manifest
from labelwise.cohort.nnunet import Layout, Unknown, dataset_name, write_case
from labelwise.console import ShowProgress, silent
from labelwise.engine import run_jobs
from labelwise.errors import ConfigError, DataError

__all__ = ["Export", "export"]

logger = logging.getLogger("labelwise")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    cases: Mapping[str, int]  # split -> number
    left_out: tuple[str, ...]  # cases without any annotation
    ignores: bool  # whether voxels are ignored

    def to_text(self) -> str:
        """One line."""
        counts = ", ".join(f"{number} {split}" for split, number in self.cases.items() if number)
        ignored = "; what is not annotated is ignored" if self.ignores else ""
        return f"{self.folder}: {counts}{ignored}"

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "folder": str(self.folder), "left_out": list(self.left_out)}


def export(
    data: Path | str,
    output: Path | str,
    *,
    number: int = 1,
    name: str | None = None,
    unknown: Unknown = "ignore",
    overwrite: bool = False,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> Export:
    """Write a manifest as a raw data set of nnU-Net v2, whole or not at all.

    Arguments
        output      the folder for data sets, which nnU-Net calls nnUNet_raw
        number      of the data set, 1 to 999
        name        of the data set; default: that of the folder of the manifest
        unknown     what becomes of voxels that are 0 in cases in which a structure is not annotated: ignore or
                    background
        overwrite   replace a data set of the same name

    Errors
        ConfigError     a wrong number; a data set of this name is there already; the name of an ONNX file
        DataError       nothing is there, nothing is annotated, several modalities, a file that cannot be read
    """
    if not Path(data).exists():
        raise DataError(
            "there is no such model or data set", file=data, do="correct its path", code="not-found"
        )
    if Path(output).suffix.lower() == ".onnx":
        raise ConfigError(
            "a data set cannot be written as ONNX, only a model can",
            file=data,
            found=f"output {output}",
            do="name a model, or a folder for the data set",
        )
    manifest = read_manifest(data)
    layout = Layout(manifest, unknown)
    default = Path(data).resolve()
    target = Path(output) / dataset_name(
        number, name or (default.parent if default.is_file() else default).name
    )
    if target.exists() and not overwrite:
        raise ConfigError(
            "there is such a data set already", file=target, do="choose another --id, or --overwrite"
        )
    cases = layout.cases
    ignores, errors = False, []
    with atomic_path(target) as temporary:
        for folder in ("imagesTr", "labelsTr"):
            (temporary / folder).mkdir(parents=True)
        there = absolute(temporary)  # workers may stand in other folders
        job = partial(write_case, layout=layout.without_cases(), folder=there)
        outcomes = run_jobs(job, cases, engine=engine, workers=workers, shared=[there])
        for done, outcome in enumerate(outcomes, start=1):
            ignores |= bool(outcome.result)
            errors += [outcome.error] if outcome.error else []
            progress("export", done, len(cases))
        if errors:
            raise DataError(f"{len(errors)} cases cannot be exported\n" + "\n".join(map(str, errors)))
        write_json(temporary / "dataset.json", layout.dataset(ignores=ignores))
        if splits := layout.splits():
            write_json(temporary / "splits_final.json", splits)
    _warn(layout, ignores=ignores)
    counts = {split: sum(case.split == split for case in cases) for split in ("train", "validation", "test")}
    return Export(target, counts, tuple(case.id for case in layout.left_out), ignores)


def _warn(layout: Layout, *, ignores: bool) -> None:
    if layout.left_out:
        logger.warning(
            "%d cases in which no class is annotated are left out: nnU-Net learns from labelled ones only",
            len(layout.left_out),
        )
    training = [case for case in layout.cases if case.split == "train"]
    if ignores and not any(bool(layout.manifest.annotated(case)[0]) for case in training):
        logger.warning(
            "no case is completely annotated: with ignored voxels nnU-Net never sees background, and will predict none"
        )
    partial_cases = sum(not bool(layout.manifest.annotated(case)[0]) for case in training)
    if layout.unknown == "background" and partial_cases:
        logger.warning(
            "in %d cases un-annotated structures are written as background, as was asked for", partial_cases
        )
