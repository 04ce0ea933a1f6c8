"""What the worker of `serve` does with a scan: the same as `predict`, with models that stay in memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.console import ShowProgress
from labelwise.errors import CheckpointError, DataError, LabelwiseError
from labelwise.formats import (
    Layout,
    is_dicom,
    read_geometry,
    read_labels,
    segment_names,
    suffix,
    value_names,
    write_labels,
)
from labelwise.infer.calibration import read_calibration
from labelwise.infer.cohort import predict_cohort, result_path
from labelwise.infer.model import Model, load_model, model_folder
from labelwise.infer.record import told_beside
from labelwise.infer.scans import Scan, find_scans
from labelwise.run.environment import environment
from labelwise.run.predict import problems_of
from labelwise.run.show import show
from labelwise.serve.jobs import PAGE, RESULT, SCAN
from labelwise.serve.worker import Answer, Facts

_BYTES_A_VOXEL = 4  # float32, as scans are read


def load_served(
    models: Mapping[str, Sequence[Path]], device: str, unpacked_bytes: int
) -> tuple[list[Facts], Answer]:
    """Load the models of a server, by their names; several folders of one name answer together.

    Returns
        what is said of each model, and the function that segments the scan of a request

    Errors
        those of `load_model`
    """
    loaded = {name: load_model(folders, device) for name, folders in models.items()}
    versions = environment()["versions"]

    def answer(request: Mapping[str, Any], progress: ShowProgress) -> Facts:
        if "correction" in request:
            return check_correction(Path(request["folder"]), **request["correction"])
        name = request["model"]
        loaded[name] = _calibrated(loaded[name], models[name])
        return segment(loaded[name], request, versions, unpacked_bytes, progress)

    return [_said_of(name, model) for name, model in loaded.items()], answer


def _calibrated(model: Model, folders: Sequence[Path]) -> Model:
    """The model with the calibration that lies in its folder now; with the one it has, if that is of another model."""
    if model.members:
        return model
    try:
        return replace(model, calibration=read_calibration(model_folder(folders[0]), model.id))
    except CheckpointError:
        return model


def _said_of(name: str, model: Model) -> Facts:
    return {
        "name": name,
        "id": model.id,
        "classes": list(model.label_space.structures),
        "intensities": list(model.info.intensities),
        "channels": model.channels,
        "dimensions": 2 if model.info.patch_size[-1] == 1 else 3,
        "method": model.info.method,
        "device": model.device.type,
    }


def segment(
    model: Model,
    request: Mapping[str, Any],
    versions: Mapping[str, str | None],
    unpacked_bytes: int,
    progress: ShowProgress,
) -> Facts:
    """Segment the scan in the folder of a request, and write its labels there in every format that fits.

    Errors
        DataError   not one scan, too large, damaged, empty, or of another modality than the model
        and those of `predict`
    """
    folder = Path(request["folder"])
    scan = _scan(folder / SCAN, model, request["intensity"])
    _check_size(scan, unpacked_bytes)
    (outcome,) = predict_cohort(
        model,
        [scan],
        folder / RESULT,
        versions=versions,
        warn=partial(problems_of, training=model.info.training),
        windows=progress,
    )
    if outcome.error is not None:
        raise outcome.error
    assert outcome.result is not None
    binary = bool(request.get("binary"))
    formats = [
        "nifti",
        *_further_formats(scan, outcome.result, folder / RESULT, model.label_space.names, binary),
    ]
    record = told_beside(outcome.result)
    warnings = [*_passed_over(folder / SCAN, request["passed_over"]), *record.get("warnings", [])]
    page = bool(request["page"])
    if page:
        try:
            show(outcome.result, folder / RESULT / PAGE, image=scan.images[0])
        except LabelwiseError as error:
            page = False
            warnings.append({"code": error.code, "what": f"no page: {error.what}", "do": error.do or ""})
    told = ("classes", "certainty", "grid", "inference", "versions", "seconds")
    return {
        "formats": formats,
        "page": page,
        "warnings": warnings,
        **{name: record[name] for name in told},
    }


def check_correction(folder: Path, label: str, names: Mapping[str, str]) -> Facts:
    """Read a label file that a person sends back, and lay it into the folder of the result, with names inside.

    A file that says itself what its values mean stays as it is; else `names` (value -> name) are written into it.

    Errors
        DataError   damaged, or with values that nobody has named
    """
    file = folder / label
    if segments := segment_names(file):
        read_labels(file, Layout(segments=segments))
        named = dict(enumerate(segments, start=1))
        values = np.array([], int)
    else:
        labels = read_labels(file)
        own = value_names(file)
        named = own or {int(value): name for value, name in names.items()}
        values = np.unique(labels.data)
    if unknown := sorted({*values.tolist()} - {0, *named}):
        raise DataError(
            "the label file holds values without a name",
            found=", ".join(map(str, unknown[:5])),
            expected=", ".join(f"{value} {name}" for value, name in named.items()) or "names of the values",
            do="save it as .seg.nrrd, which names its segments",
            code="unknown-label-value",
        )
    target = folder / RESULT / f"{SCAN}{suffix(file)}"
    target.parent.mkdir()
    if segments or own:
        file.rename(target)
    else:
        target = target.with_name(f"{SCAN}.nii.gz")
        write_labels(
            target, labels, names=[named.get(value, "") for value in range(max(named, default=0) + 1)]
        )
    return {"correction": target.name}


def _scan(folder: Path, model: Model, intensity: str) -> Scan:
    files = sorted(folder.iterdir())
    if all(suffix(file) for file in files):
        images = tuple(files)
        if len(images) != model.channels:
            raise DataError(
                "the model needs another number of images per scan",
                found=len(images),
                expected=f"{model.channels}, one file for each channel, in the order of the training",
            )
        return Scan(SCAN, images, intensity)
    scans = find_scans(folder, intensity=intensity, channels=model.channels)
    if len(scans) != 1:
        raise DataError(
            "the archive holds several scans", found=len(scans), expected="one series of one patient"
        )
    return scans[0]


def _passed_over(folder: Path, others: int) -> list[dict[str, str]]:
    """What an archive held beside the series that was segmented."""
    found = []
    if others:
        what = f"files of the archive that are no DICOM were passed over: {others}"
        found.append({"code": "passed-over", "what": what, "do": "look whether they belong to the scan"})
    if not all(suffix(file) for file in folder.iterdir()):
        dicom = importlib.import_module("labelwise.formats.dicom.image")  # an extra
        if (count := len(dicom.series_in(folder))) > 1:
            what = f"of the {count} series of the archive that with most slices was segmented"
            found.append({"code": "passed-over", "what": what, "do": "send the series that is meant alone"})
    return found


def _check_size(scan: Scan, most_bytes: int) -> None:
    """Refuse by its headers a scan that would not fit, before its voxels are read."""
    needed = sum(prod(read_geometry(image, scan.layout).shape) * _BYTES_A_VOXEL for image in scan.images)
    if needed > most_bytes:
        raise DataError(
            "the scan is too large for this server",
            file=scan.images[0],
            found=f"{needed:,} bytes of voxels",
            expected=f"at most {most_bytes:,}",
            code="too-large",
        )


def _further_formats(scan: Scan, nifti: Path, folder: Path, names: Sequence[str], binary: bool) -> list[str]:
    """Write the labels for 3D Slicer too, and of a DICOM series as DICOM-SEG (`binary`); returns the formats."""
    image = scan.images[0]
    formats = ["nrrd", *(["dicom-seg"] if image.is_dir() or is_dicom(image) else [])]
    labels = read_labels(nifti)
    for label_format in formats:
        as_masks = binary and label_format == "dicom-seg"
        write_labels(
            result_path(scan, folder, label_format), labels, like=image, names=names, binary=as_masks
        )
    return formats
