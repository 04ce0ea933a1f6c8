"""Which patients a run has learnt from or was chosen by, so that a comparison can tell a test from a memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from labelwise.atomic import write_json
from labelwise.cohort.manifest import Manifest
from labelwise.documents import read_json
from labelwise.errors import DataError

PATIENTS = "patients.json"
RUN = "run.toml"  # the folder of a run has it


def record_patients(folder: Path, manifest: Manifest, start: Path | str | None = None) -> None:
    """Write patients.json: the patients (groups) of training and validation, and those of the run `start`s from."""
    seen = {name: sorted({case.group for case in manifest.split(name)}) for name in ("train", "validation")}
    write_json(folder / PATIENTS, seen | ({"before": sorted(patients_of(start))} if start else {}))


def record_seen(folder: Path, models: Iterable[Path | str], patients: Iterable[str]) -> None:
    """Write which of the `patients` that are predicted here the models (folders, or their runs) have seen.

    For predictions that are kept outside of the run: its own record says more, and is not touched.
    """
    if (folder / RUN).exists():
        return
    known: set[str] = set()
    for model in map(Path, models):
        known |= patients_of(model) | (patients_of(model.parent) if model.name == "model" else set())
    if (seen := sorted(known & set(patients))) or (folder / PATIENTS).exists():
        write_json(folder / PATIENTS, {"seen": seen})


def patients_of(folder: Path | str) -> set[str]:
    """All patients that the run has seen; empty for a run that recorded none."""
    file = Path(folder) / PATIENTS
    if not file.exists():
        return set()
    try:
        record = read_json(file)
        return {str(patient) for patients in record.values() for patient in patients}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            "the record of the patients of a run is damaged",
            file=file,
            found=f"{type(error).__name__}: {error}",
            do="delete it: the run is then not checked for test patients",
        ) from error
