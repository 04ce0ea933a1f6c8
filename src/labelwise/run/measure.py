"""`measure`: volume, intensities, extent and place of every annotated structure, from label maps that exist."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.atomic import write_json, write_text
from labelwise.cohort.data_set import value_table
from labelwise.cohort.manifest import DataSet, Manifest, absolute, manifest_file, read_manifest
from labelwise.console import ShowProgress, silent
from labelwise.documents import cells
from labelwise.engine import run_jobs
from labelwise.errors import ConfigError, DataError, LabelwiseError
from labelwise.formats import stem, suffix, value_names
from labelwise.quality.measure import Measures, measure_case
from labelwise.types import BACKGROUND, Case, LabelSpace

__all__ = ["Measured", "measure"]

FILES = ("measures.csv", "measures.json")
COLUMNS = (
    "case",
    "data_set",
    "class",
    "voxels",
    "volume_ml",
    "mean",
    "std",
    "median",
    "p05",
    "p95",
    "extent_x_mm",
    "extent_y_mm",
    "extent_z_mm",
    "centroid_x_mm",
    "centroid_y_mm",
    "centroid_z_mm",
    "touches_border",
    "faces",
    "components",
    "part",
)


@dataclass(frozen=True)
class Measured:
    """The measures of a cohort, in the order of its cases, and the cases that could not be measured."""

    rows: tuple[Measures, ...]
    failures: tuple[LabelwiseError, ...] = ()

    def to_text(self) -> str:
        """One line for each class: cases, volume, intensity, and how many are cut by the border of the scan."""
        table = [["class", "cases", "absent", "volume ml (5, 50, 95 %)", "mean intensity", "at the border"]]
        for structure in dict.fromkeys(row.structure for row in self.rows):
            rows = [row for row in self.rows if row.structure == structure]
            present = [row for row in rows if row.voxels]
            found = [row.volume_ml for row in present if not row.part]
            volumes = np.percentile(found, (5, 50, 95)).tolist() if found else list[float]()
            means = [row.intensities.mean for row in present if row.intensities]
            table.append(
                [
                    structure,
                    str(len(rows)),
                    str(len(rows) - len(present)),
                    ", ".join(f"{volume:.4g}" for volume in volumes),
                    f"{np.mean(means):.4g}" if means else "",
                    str(sum(bool(row.faces) for row in present)),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        if confined := sum(bool(row.part) for row in self.rows):
            lines.append(f"{confined} of {len(self.rows)} are of a part of a scan, and not among the volumes")
        return "\n".join([*lines, *(f"not measured: {error}" for error in self.failures)])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "measures": [_to_json(row) for row in self.rows],
            "failed": [
                {"case": error.case or "", "file": str(error.file or ""), "message": str(error)}
                for error in self.failures
            ],
        }

    def write(self, folder: Path | str) -> None:
        """Write measures.csv and measures.json.

        Errors
            ResourceError   the folder cannot be written
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(cells(_to_row(row)) for row in self.rows)
        write_text(Path(folder) / FILES[0], text.getvalue())
        write_json(Path(folder) / FILES[1], self.facts())


def measure(
    data: Path | str,
    output: Path | str | None = None,
    *,
    classes: Mapping[str, int] | None = None,
    images: Path | str | None = None,
    split: str | None = None,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> Measured:
    """Measure the annotated structures of every case.

    Arguments
        data        a manifest; or a folder of label files, such as the predictions of a model
        output      folder for measures.csv and measures.json
        classes     of a folder: class name -> label value; default: the records that `predict` writes beside its
                    results
        images      of a folder: where the scans with the same names lie; without them there are no intensities
        split       of a manifest: only these cases; default: all

    Errors
        DataError, ConfigError      nothing to measure, or the classes are not known
    """
    data = Path(data)
    file = manifest_file(data)
    if file.is_file() and file.suffix == ".csv":
        if classes or images:
            raise ConfigError("classes and images of a manifest are in the manifest", file=file)
        manifest, with_image = read_manifest(file), True
    else:
        manifest, with_image = _of_folder(data, classes, images), images is not None
    cases = [case for case in manifest.cases if case.annotated and split in (None, case.split)]
    if not cases:
        raise DataError(
            "no annotated case to measure", file=data, found=f"split '{split}'" if split else None
        )
    jobs = [manifest.replace_cases([case]) for case in cases]
    rows: dict[str, list[Measures]] = {}
    failures: dict[str, LabelwiseError] = {}
    outcomes = run_jobs(partial(measure_case, with_image=with_image), jobs, workers=workers, engine=engine)
    for done, outcome in enumerate(outcomes, start=1):
        name = outcome.item.cases[0].id
        if outcome.error is not None:
            failures[name] = outcome.error
        rows[name] = outcome.result or []
        progress("measure", done, len(jobs))
    measured = Measured(
        tuple(row for case in cases for row in rows[case.id]),
        tuple(failures[case.id] for case in cases if case.id in failures),
    )
    if output is not None:
        measured.write(output)
    return measured


def _of_folder(folder: Path, classes: Mapping[str, int] | None, images: Path | str | None) -> Manifest:
    """A folder of label files as a manifest; every class of a file counts as annotated."""
    files = _files(folder)
    scans = _files(Path(images)) if images is not None else {}
    cases: list[Case] = []
    data_sets: dict[str, DataSet] = {}
    for name, file in files.items():
        values = value_table(classes) if classes else _named(file)
        data_set = next((key for key, known in data_sets.items() if known.values == values), None)
        if data_set is None:
            data_set = absolute(folder).name + (f"_{len(data_sets)}" if data_sets else "")
            data_sets[data_set] = DataSet(data_set, values, "ct")
        scan = scans.get(name, scans.get(f"{name}_0000"))
        if images is not None and scan is None:
            raise DataError("there is no scan of this name", case=name, file=Path(images))
        cases.append(Case(name, (scan or file,), file, data_sets[data_set].structures, data_set=data_set))
    names = dict.fromkeys(name for data_set in data_sets.values() for name in data_set.values.values())
    space = LabelSpace((BACKGROUND, *(name for name in names if name not in (BACKGROUND, "ignore"))))
    return Manifest(space, data_sets, tuple(cases))


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if suffix(file) and not file.name.startswith("."):
            if stem(file) in found:
                raise DataError(
                    "two files of one case", case=stem(file), file=f"{found[stem(file)]} and {file}"
                )
            found[stem(file)] = absolute(file)
    if not found:
        raise DataError(
            "no label file to measure", file=folder, expected="a manifest, or a folder of label files"
        )
    return found


def _named(file: Path) -> dict[int, str]:
    """Label value -> class name, from the header of a label file or the record beside it."""
    if named := value_names(file):
        return {0: BACKGROUND, **named}
    raise DataError(
        "the classes of these label files are not known",
        file=file,
        do="name them: --classes liver=1,spleen=2; or keep the .json records that `labelwise predict` writes",
    )


def _to_row(row: Measures) -> Sequence[object]:
    nothing = ("", "", "")
    return (
        row.case,
        row.data_set,
        row.structure,
        row.voxels,
        _number(row.volume_ml),
        *(map(_number, row.intensities) if row.intensities else ("",) * 5),
        *(map(_number, row.extent_mm) if row.extent_mm else nothing),
        *(map(_number, row.centroid_mm) if row.centroid_mm else nothing),
        ("yes" if row.faces else "no") if row.voxels else "",
        ";".join(row.faces),
        row.components,
        row.part,
    )


def _number(value: float) -> str:
    return f"{value:.6g}"


def _to_json(row: Measures) -> dict[str, Any]:
    facts = asdict(row)
    intensities = row.intensities
    facts["class"] = facts.pop("structure")
    facts["intensities"] = None if intensities is None else intensities._asdict()
    facts["touches_border"] = bool(row.faces)
    return facts
