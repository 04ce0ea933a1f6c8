"""`split`: who trains, validates and tests, drawn anew; also as the folds of a cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.atomic import write_json
from labelwise.cohort.coverage import never_annotated
from labelwise.cohort.folds import FOLDS, fold_name, leave_each_data_set_out, make_folds
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, read_manifest, write_new_manifest
from labelwise.cohort.split import split_cases
from labelwise.documents import read_json
from labelwise.errors import ConfigError, DataError

__all__ = ["SplitResult", "split"]

logger = logging.getLogger("labelwise")


@dataclass(frozen=True)
class SplitResult:
    """The manifests that were written, by the name of their folder in `folder`; "" is `folder` itself."""

    folder: Path
    manifests: Mapping[str, Manifest]

    def to_text(self) -> str:
        """One line for each manifest, and how often each class is annotated in what tests there."""
        return "\n".join(_line(self.folder / name, manifest) for name, manifest in self.manifests.items())

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "folder": str(self.folder),
            "manifests": {name or ".": _facts(manifest) for name, manifest in self.manifests.items()},
        }


def split(
    data: Path | str,
    output: Path | str,
    *,
    folds: int | None = None,
    by_data_set: bool = False,
    validation: int | float | None = None,
    test: int | float = 0,
    seed: int = 0,
) -> SplitResult:
    """Draw who trains, validates and tests. Patients stay whole; scans are not copied.

    With `folds` the output holds a manifest for each fold, ``fold_0``, ``fold_1``, ..., in which its part of the
    annotated patients tests (see `labelwise.cohort.folds`), and ``folds.json``. With `by_data_set` each fold is a data
    set: its annotated cases test, and so do the test cases of the others, which train. Else it holds one manifest, in
    which so many annotated training patients more validate and test.

    Arguments
        data            folder of the manifest
        output          folder to write to; other manifests there are not replaced
        folds           of a cross-validation
        by_data_set     one fold for each data set
        validation      patients: a number, or a part below 1; with folds by default as many as validate in the manifest
        test            as `validation`, without folds

    Errors
        ConfigError     nothing to draw, numbers that do not fit the patients, other manifests in the output folder
        DataError       the manifest is wrong; a patient of two splits; a class that nobody would be left to learn from
    """
    folder = Path(output)
    if folds is None and not by_data_set and not validation and not test:
        raise ConfigError("nothing to draw", do="say --folds, --by-data-set, or --validation and --test")
    if folds is not None and test:
        raise ConfigError(
            "each fold tests its part of the patients", found=f"test = {test}", do="leave out --test"
        )
    if by_data_set and (folds is not None or validation or test):
        raise ConfigError(
            "the data sets decide who tests in which fold", do="leave out --folds, --validation and --test; set "
            "validation and test cases aside before, by a `labelwise split` of its own",
        )  # fmt: skip
    manifest = read_manifest(data)
    if by_data_set:
        left_out = leave_each_data_set_out(manifest)
        record: dict[str, Any] = {"folds": len(left_out), "data_sets": list(left_out)}
        return _written(folder, list(left_out.values()), record)
    if folds is None:
        drawn = split_cases(manifest, validation=validation or 0, test=test, seed=seed)
        if missing := never_annotated(drawn):
            logger.warning("no training case annotates %s: training will refuse to begin", ", ".join(missing))
        write_new_manifest(drawn, folder)
        return SplitResult(folder, {"": drawn})
    record = {"folds": folds, "validation": validation, "seed": seed}
    return _written(folder, make_folds(manifest, folds, validation=validation, seed=seed), record)


def _written(folder: Path, folds: Sequence[Manifest], record: Mapping[str, Any]) -> SplitResult:
    if (found := read_folds(folder)) not in (None, record):
        raise ConfigError(
            "the output folder holds other folds", file=folder / FOLDS, found=found, expected=record,
            do="choose another folder", code="would-overwrite",
        )  # fmt: skip
    made = {fold_name(number): each for number, each in enumerate(folds)}
    for name, each in made.items():
        write_new_manifest(each, folder / name)
    write_json(folder / FOLDS, record)
    return SplitResult(folder, made)


def read_folds(folder: Path) -> dict[str, Any] | None:
    """What `split` wrote about the folds in a folder; None if there are none.

    Errors
        DataError   the record is damaged
    """
    file = folder / FOLDS
    if not file.exists():
        return None
    try:
        record: dict[str, Any] = read_json(file)
        record["folds"] = int(record["folds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the record of the folds is damaged",
            file=file,
            found=f"{type(error).__name__}: {error}",
            do="repeat `labelwise split`",
        ) from error
    return record


def data_set_of_fold(data: Path) -> str | None:
    """The data set that the manifest of a fold leaves out; None if it is no fold by data set."""
    manifest = data.parent if data.name == MANIFEST_NAME else data
    record = read_folds(manifest.parent) or {}
    names = {fold_name(number): str(name) for number, name in enumerate(record.get("data_sets", ()))}
    return names.get(manifest.name)


def missing_folds(folders: Mapping[int, Path]) -> tuple[int, ...]:
    """The folds that are not there, of the manifests of those that are, by number; none if nothing says how many."""
    for path in folders.values():
        manifest = path.parent if path.name == MANIFEST_NAME else path
        if (record := read_folds(manifest.parent)) is not None:
            return tuple(number for number in range(record["folds"]) if number not in folders)
    return ()


def _facts(manifest: Manifest) -> dict[str, Any]:
    tests = manifest.split("test")
    return {
        "cases": {name: len(manifest.split(name)) for name in ("train", "validation", "test")},
        "patients_that_test": len({case.group for case in tests}),
        "annotated_tests": {
            structure: sum(structure in case.annotated for case in tests)
            for structure in manifest.label_space.structures
        },
    }


def _line(folder: Path, manifest: Manifest) -> str:
    found = _facts(manifest)
    testing = found["patients_that_test"]
    cases = ", ".join(f"{count} {name}" for name, count in found["cases"].items())
    structures = ", ".join(f"{structure} {count}" for structure, count in found["annotated_tests"].items())
    who = f"{testing} patient{' tests' if testing == 1 else 's test'}"
    return f"{folder / MANIFEST_NAME}: {cases}; {who}, annotated {structures}"
