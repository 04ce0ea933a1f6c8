"""Which label file is compared with which reference, and what the integers of both mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, manifest_file, read_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import stem, suffix
from labelwise.types import IGNORE, Array, LabelSpace

PREDICTIONS, SCORES = "predictions", "scores.csv"  # names in the folder of a run


@dataclass(frozen=True)
class Pair:
    """A prediction and what it is compared with."""

    case: str
    prediction: Path
    classes: tuple[str, ...]  # names by index in the prediction
    reference: Path | None  # None: the manifest's label file of this case
    annotated: tuple[str, ...]


def find_pairs(folder: Path, reference: Path, split: str) -> tuple[Manifest | None, LabelSpace, list[Pair]]:
    """The pairs to score: the annotated cases of a split, or all label files of a reference folder.

    Errors
        DataError   nothing to evaluate, no reference, a case without prediction, two predictions of one case,
                    an annotated class that the model does not know, or damaged records
    """
    found = _label_files(folder)
    if not found:
        raise DataError("no label file to evaluate", file=folder, do="run `labelwise predict` first")
    file = manifest_file(reference)
    if file.name == MANIFEST_NAME and file.exists():
        return _in_manifest(folder, found, file, split)
    references = _label_files(reference)
    if not references:
        raise DataError("no reference found", file=reference, expected="manifest.csv, or label files")
    _require(list(references), found, folder)
    space = _common_classes(folder, references)
    return (
        None,
        space,
        [Pair(name, found[name], space.names, path, space.organs) for name, path in references.items()],
    )


def in_space(labels: Array, classes: Sequence[str], space: LabelSpace) -> Array:
    """Indices of `classes` -> indices of `space`, joined by name; what `space` lacks is background there.

    Shapes
        labels      (*S)  integers; those without a class become IGNORE, which no prediction may hold
        returns     (*S)  the same map if both agree, else uint8
    """
    if tuple(classes) == space.names:
        return labels
    table = np.full(IGNORE + 1, IGNORE, np.uint8)
    table[: len(classes)] = [space.names.index(name) if name in space.names else 0 for name in classes]
    known = (labels >= 0) & (labels < IGNORE)
    return np.asarray(table[np.where(known, labels, IGNORE)])


def _in_manifest(
    folder: Path, found: Mapping[str, Path], file: Path, split: str
) -> tuple[Manifest, LabelSpace, list[Pair]]:
    manifest = read_manifest(file)
    cases = [case for case in manifest.split(split) if case.annotated]
    if not cases:
        raise DataError(f"no annotated case is in the split '{split}'", file=file)
    _require([case.id for case in cases], found, folder)
    pairs = []
    for case in cases:
        record = folder / f"{case.id}.json"
        # Label files of other programs have no record: they are believed to follow the manifest.
        classes = (_read_classes(record) if record.exists() else manifest.label_space).names
        if unknown := sorted(case.annotated - set(classes)):
            raise DataError(
                f"the model of this prediction does not know {', '.join(unknown)}",
                case=case.id,
                file=record,
                found=", ".join(classes[1:]),
                expected=", ".join(sorted(case.annotated)),
                do="evaluate with a manifest that annotates only what the model knows, by the same names",
            )
        pairs.append(Pair(case.id, found[case.id], classes, None, tuple(sorted(case.annotated))))
    return manifest, manifest.label_space, pairs


def _label_files(folder: Path) -> dict[str, Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    named: dict[str, Path] = {}
    for file in files:
        if not suffix(file) or file.name.startswith("."):
            continue
        if (other := named.setdefault(stem(file), file)) is not file:
            raise DataError(
                "two label files of one case", case=stem(file), file=f"{other} and {file}", do="remove one"
            )
    return named


def _require(names: Sequence[str], found: Mapping[str, Path], folder: Path) -> None:
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{len(missing)} of {len(names)} cases have no prediction",
            file=folder,
            found=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            do="repeat `labelwise predict`; finished scans are kept",
        )


def _common_classes(folder: Path, names: Mapping[str, Path]) -> LabelSpace:
    """The class table that `predict` wrote beside its results: one for all of them."""
    records = [record for name in names if (record := folder / f"{name}.json").exists()]
    if not records:
        raise DataError(
            "the classes of these label files are not known",
            file=folder,
            do="give a manifest as reference, or keep the .json records that `labelwise predict` writes",
        )
    space = _read_classes(records[0])
    for record in records[1:]:
        if (other := _read_classes(record)) != space:
            raise DataError(
                "the predictions are of models with different classes",
                file=record,
                found=", ".join(other.names),
                expected=", ".join(space.names),
                do="evaluate them apart, or give a manifest as reference",
            )
    return space


def _read_classes(record: Path) -> LabelSpace:
    try:
        classes = json.loads(record.read_text(encoding="utf-8"))["classes"]
        return LabelSpace(tuple(classes[key] for key in sorted(classes, key=int)))
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(
            "the record of a prediction is damaged",
            file=record,
            found=f"{type(error).__name__}: {error}",
            do="delete it and its label file, and repeat `labelwise predict`",
        ) from error
