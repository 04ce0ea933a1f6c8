"""`predict`: from a model, or several that answer as one, and scans to label files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, manifest_file, read_manifest
from labelwise.console import ShowProgress, silent
from labelwise.devices import choose_devices
from labelwise.engine import Outcome
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.formats import LABEL_FORMATS, Geometry
from labelwise.infer.cohort import Elsewhere, Seen, predict_cohort
from labelwise.infer.maps import MAPS
from labelwise.infer.model import DESCRIPTION, Model, load_model, model_folder
from labelwise.infer.record import warnings_of
from labelwise.infer.scans import Scan, find_scans
from labelwise.infer.sliding_window import InferenceConfig, check_windows
from labelwise.lock import only_writer
from labelwise.quality.check_fit import inspect_for_model
from labelwise.run.environment import environment
from labelwise.run.patients import patients_of, run_of, scans_of
from labelwise.settings import build_settings, put
from labelwise.types import Case, Volume

__all__ = ["PredictionResult", "predict"]


@dataclass(frozen=True)
class PredictionResult:
    """Which scans have a label file now, and which failed."""

    folder: Path
    written: Mapping[str, Path]  # scan id -> label file
    failed: Mapping[str, str]  # scan id -> message
    warned: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # scan id -> what is wrong with the scan

    def to_text(self) -> str:
        """The message of each failure, what is wrong with scans that were segmented, and one line for the whole."""
        scans = "scan" if len(self.written) == 1 else "scans"
        head = f"{self.folder}: {len(self.written)} {scans} segmented, {len(self.failed)} failed"
        if self.warned:
            head += f", {len(self.warned)} segmented with warnings"
        warnings = [f"case '{name}': {what}" for name, found in self.warned.items() for what in found]
        return "\n".join([*self.failed.values(), *warnings, head])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "folder": str(self.folder),
            "written": {name: str(path) for name, path in self.written.items()},
            "failed": dict(self.failed),
            "warnings": {name: list(found) for name, found in self.warned.items()},
        }


def predict(
    model: Path | str | Sequence[Path | str],
    scans: Path | str,
    output: Path | str,
    *,
    split: str = "test",
    intensity: str | None = None,
    classifier: str | None = None,
    label_format: str = "nifti",
    binary: bool = False,
    maps: Collection[str] = (),
    device: str = "auto",
    engine: str = "local",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: ShowProgress = silent,
) -> PredictionResult:
    """Segment scans with a trained model; results lie on the grid and in the orientation of their scan.

    Every scan is judged by the rules of `check`, and beside the scans of the training: what is wrong stands in the
    result and in the record of the case. An empty scan, or one of another modality, is a failure.

    Arguments
        model       model folder, or the folder of a run; of several the mean of their scores decides
        scans       a file, a folder, a list (.txt, .csv), or a manifest, of which `split` is predicted
        output      folder for ``ID.nii.gz`` and ``ID.json``; results of this model and these settings are kept
        label_format    nifti, nrrd (``ID.seg.nrrd`` for 3D Slicer), dicom-seg (``ID.seg.dcm``) or rtstruct
                    (``ID.rtstruct.dcm``); the last two for DICOM series
        binary      DICOM-SEG of the type BINARY instead of LABELMAP
        maps        further files: "probabilities" of each class, "entropy" (see `labelwise.infer.maps`)
        intensity   what the intensities are: ct, mr or normalised; needed only if the model knows several
        classifier  which of several classifiers of the model decides, e.g. "linear"; default: the trained setting
        device      auto, cpu, cuda, cuda:1 or mps; "all" for a process on each GPU, or a list as "cuda:0,cuda:1"
        engine      local, or dask://host:port: the workers of a Dask cluster, each on the `device` that it sees
        settings    inference settings to change, e.g. {"overlap": 0.75} or {"inference.overlap": 0.75}

    Errors
        CheckpointError     not a model
        ConfigError         unknown intensities, classifier, format or setting; DICOM labels of a scan that is no
                            DICOM; models that cannot answer together; a model in the place of the scans
        DataError           no scan found; a scan that cannot be read is a failure in the result instead
        ResourceError       no such device, no scheduler, a process that died; another program writes into the folder
    """
    if label_format not in LABEL_FORMATS:
        raise ConfigError(
            f"unknown format '{label_format}'{did_you_mean(label_format, LABEL_FORMATS)}",
            expected=", ".join(LABEL_FORMATS),
            code="unknown-name",
        )
    if binary and label_format != "dicom-seg":
        raise ConfigError(
            "binary is a type of DICOM-SEG",
            found=label_format,
            do="choose --format dicom-seg, or leave out --binary",
        )
    if unknown := sorted(set(maps) - set(MAPS)):
        raise ConfigError(
            f"unknown map '{unknown[0]}'{did_you_mean(unknown[0], MAPS)}",
            expected=", ".join(MAPS),
            code="unknown-name",
        )
    _refuse_model(Path(scans))
    loaded, elsewhere = load_for(model, device, classifier, engine)
    cases = _cases(Path(scans), split)
    items = _scans(Path(scans), cases, loaded, intensity, Path(output))
    chosen = replace(loaded, config=changed_settings(loaded, settings or {}))

    with only_writer(output):
        outcomes = predict_cohort(
            chosen,
            items,
            output,
            label_format=label_format,
            binary=binary,
            maps=maps,
            versions=environment()["versions"],
            overwrite=overwrite,
            warn=partial(problems_of, training=loaded.info.training),
            seen=_seen_by(_each(model), cases),
            progress=progress,
            elsewhere=elsewhere,
        )
    return result_of(Path(output), outcomes)


def load_for(
    model: Path | str | Sequence[Path | str], device: str, classifier: str | None, engine: str = "local"
) -> tuple[Model, Elsewhere | None]:
    """A model on the device that predicts; or on the CPU, and the processes that load it and predict.

    Errors
        ConfigError     no such engine; several devices for the workers of a cluster
    """
    several = device == "all" or "," in device
    if engine != "local" and not engine.startswith("dask://"):
        raise ConfigError(
            f"unknown engine '{engine}'", expected="local or dask://host:port", code="unknown-name"
        )
    if engine != "local" and several:
        raise ConfigError(
            "each worker of a cluster takes one device",
            found=f"--device {device}",
            do="start a worker for each GPU, and leave out --device",
        )
    devices = choose_devices(device) if several else (device,)
    if engine == "local" and len(devices) == 1:
        return load_model(model, devices[0], classifier=classifier), None
    paths = tuple(Path(each).resolve() for each in _each(model))
    return load_model(model, "cpu", classifier=classifier), Elsewhere(paths, classifier, devices, engine)


def _each(model: Path | str | Sequence[Path | str]) -> Sequence[Path | str]:
    return [model] if isinstance(model, str | Path) else model


def result_of(folder: Path, outcomes: Sequence[Outcome[Scan, Path]]) -> PredictionResult:
    """What became of the scans of a cohort."""
    written = {outcome.item.id: outcome.result for outcome in outcomes if outcome.result is not None}
    warned = {name: found for name, path in written.items() if (found := warnings_of(path))}
    return PredictionResult(
        folder,
        written,
        {outcome.item.id: str(outcome.error) for outcome in outcomes if outcome.error is not None},
        warned,
    )


def problems_of(
    scan: Scan, image: Volume, training: Mapping[str, Any], as_given: Geometry | None = None
) -> list[dict[str, str]]:
    """What `check` would say of a scan; `as_given` is the grid of one that lies in no file.

    Errors
        DataError   it must not be segmented: nothing is in it, or it is of another modality
    """
    case = Case(scan.id, scan.images)
    problems = inspect_for_model(
        case, image, intensity=scan.intensity, layout=scan.layout, training=training, as_given=as_given
    )
    for problem in problems:
        if problem.severity == "error":
            raise DataError(problem.what, case=scan.id, file=problem.file, do=problem.remedy)
    return [{"code": problem.code, "what": problem.what, "do": problem.remedy} for problem in problems]


def _refuse_model(scans: Path) -> None:
    """A model where scans should be: its folder holds label files, which could be taken for scans."""
    if (model_folder(scans) / DESCRIPTION).exists():
        raise ConfigError(
            "a model stands in the place of the scans",
            file=scans,
            expected="MODEL... SCANS: one or several models, then a scan, a folder, a list or a manifest",
        )


def _cases(path: Path, split: str) -> Manifest | None:
    """The cases of a split, if a manifest is named."""
    file = manifest_file(path)
    if file.name != MANIFEST_NAME or not file.exists():
        return None
    manifest = read_manifest(file)
    if not (cases := manifest.split(split)):
        raise no_case_in(split, manifest, file)
    return manifest.replace_cases(cases)


def no_case_in(split: str, manifest: Manifest, file: Path) -> DataError:
    """The error that a split is empty, with the splits that are not."""
    others = sorted({case.split for case in manifest.cases if case.split})
    return DataError(
        f"no case of the manifest is in the split '{split}'",
        file=file,
        expected=", ".join(others) or None,
        do=f"name one of them: --split {others[0]}" if others else None,
        code="no-case",
    )


def _scans(
    path: Path, manifest: Manifest | None, model: Model, intensity: str | None, results: Path
) -> list[Scan]:
    if intensity is not None:
        model.intensity(intensity)  # refuses an unknown one
    if manifest is None:
        return find_scans(
            path, intensity=model.intensity(intensity), channels=model.channels, results=results
        )
    check_channels(manifest.cases, model.channels)
    data_sets = manifest.data_sets
    return [
        scan_of(case, manifest, intensity or data_sets[case.data_set].intensity) for case in manifest.cases
    ]


def scan_of(case: Case, manifest: Manifest, intensity: str) -> Scan:
    """A case as a scan to predict."""
    return Scan(case.id, case.images, intensity, manifest.data_set_of(case).layout, case.missing)


@dataclass(frozen=True)
class _SeenBy:
    """Tells whether the training of a model has seen a scan: its patient, if a manifest names him, or its voxels."""

    groups: Mapping[str, str]  # scan -> patient
    patients: Mapping[str, str]
    scans: Mapping[str, str]  # by the hash of a scan

    def __call__(self, scan: Scan, hashes: Sequence[str]) -> str:
        of_patient = self.patients.get(self.groups.get(scan.id, ""), "")
        return of_patient or next((self.scans[each] for each in hashes if each in self.scans), "")


def _seen_by(models: Sequence[Path | str], manifest: Manifest | None) -> Seen:
    groups = {case.id: case.group for case in manifest.cases} if manifest else {}
    patients: dict[str, str] = {}
    scans: dict[str, str] = {}
    for run in map(run_of, models):
        patients, scans = patients_of(run) | patients, scans_of(run) | scans
    return _SeenBy(groups, patients, scans)


def check_channels(cases: Sequence[Case], channels: int) -> None:
    """Raise a DataError unless every case has as many images as the model needs."""
    if wrong := [case for case in cases if case.channels != channels]:
        raise DataError(
            "the model needs another number of images per scan",
            case=wrong[0].id,
            file=wrong[0].images[0],
            found=f"{wrong[0].channels} ({len(wrong)} of {len(cases)} scans do not fit)",
            expected=channels,
        )


def changed_settings(model: Model, settings: Mapping[str, Any]) -> InferenceConfig:
    """Inference settings of a model with some of them changed: {"overlap": 0.75} or {"inference.overlap": 0.75}.

    Errors
        ConfigError     an unknown setting, or windows that the network cannot take
    """
    values = asdict(model.config)
    for key, value in settings.items():
        put(values, key.removeprefix("inference."), value)
    config = build_settings(InferenceConfig, values, "inference settings")
    check_windows(config, model.info.patch_size, model.strides)
    return config
