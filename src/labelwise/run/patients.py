"""Which patients and scans a run has learnt from or was chosen by, so that scores can tell a test from a memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise.atomic import write_json
from labelwise.cohort.manifest import Manifest
from labelwise.documents import read_json
from labelwise.errors import DataError

PATIENTS = "patients.json"
DESCRIPTION = "model.json"
_SPLITS = ("train", "validation")


def record_patients(
    folder: Path, manifest: Manifest, hashes: Mapping[Path, str], starts: Sequence[Path | str] = ()
) -> None:
    """Write patients.json: patients (groups) and scans of training and validation, and of the runs it `starts` from.

    `hashes` are those of the images' contents: a scan is known again by whatever name.
    """
    cases = {name: manifest.split(name) for name in _SPLITS}
    record: dict[str, Any] = {name: sorted({case.group for case in cases[name]}) for name in _SPLITS}
    scans = {
        name: {hashes[image] for case in cases[name] for image in case.images if image in hashes}
        for name in _SPLITS
    }
    for start in map(run_of, starts):
        record["before"] = sorted({*record.get("before", ()), *patients_of(start)})
        scans["train"] |= scans_of(start).keys()
    record["scans"] = {name: sorted(found) for name, found in scans.items()}
    write_json(folder / PATIENTS, record)


def patients_of(folder: Path | str) -> dict[str, str]:
    """The patients that the run has seen, and how: "train" or "validation"; empty for a run that recorded none.

    What an earlier run has seen, from which this one started, counts as seen in the training.
    """
    groups, _ = _read(folder)
    return groups


def scans_of(folder: Path | str) -> dict[str, str]:
    """Hashes of the images that a run, or a model without its run, has seen, and how: "train" or "validation"."""
    _, scans = _read(folder)
    return scans


def seen_scans(folder: Path | str) -> dict[str, list[str]]:
    """The same as a model keeps it for itself, which says nothing of patients: how -> hashes."""
    found = scans_of(folder)
    return {name: sorted(scan for scan, how in found.items() if how == name) for name in _SPLITS}


def run_of(model: Path | str) -> Path:
    """The folder of the run that a model belongs to: itself, or the folder around its model folder."""
    folder = Path(model).absolute()
    return folder.parent if (folder.parent / PATIENTS).exists() else folder


def _read(folder: Path | str) -> tuple[dict[str, str], dict[str, str]]:
    file = Path(folder) / PATIENTS
    if not file.exists():
        file = Path(folder) / DESCRIPTION  # of a model that was copied out of its run
    if not file.exists():
        return {}, {}
    try:
        record = read_json(file)
        scans = record.get("scans", {})
        if file.name == DESCRIPTION:
            record, scans = {}, record.get("training", {}).get("seen", {})
        before = dict.fromkeys(map(str, _listed(record.get("before", []))), "train")
        return _how(record) | before, _how(scans)
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            "the record of the patients of a run is damaged",
            file=file,
            found=f"{type(error).__name__}: {error}",
            do="delete it: the run is then not checked for test patients",
        ) from error


def _how(record: Mapping[str, Any]) -> dict[str, str]:
    """Name -> split; the training counts where a name is in both."""
    return {str(name): split for split in reversed(_SPLITS) for name in _listed(record.get(split, []))}


def _listed(names: Any) -> Sequence[Any]:
    if not isinstance(names, list):
        raise TypeError(f"{names!r} is no list")
    return names
