"""Many scans: the largest first, finished ones skipped, a failure costs one scan and not the cohort.

output/
    CASE.nii.gz     labels on the grid of the scan; written last, so its presence means finished. Or another of
                    LABEL_FORMATS
    CASE.json       class table, model, settings, versions, seconds
    probabilities/, entropy/        on request: see `labelwise.infer.maps`
    failed.csv      case, file, message: only if something failed
"""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from labelwise.atomic import discard_leftovers, write_json, write_text
from labelwise.console import ShowProgress, silent
from labelwise.documents import cells
from labelwise.engine import Outcome, own_place, run_jobs
from labelwise.errors import CheckpointError, ConfigError, DataError, LabelwiseError, naming, warn_about
from labelwise.formats import LABEL_FORMATS, hash_file, is_dicom, read_geometry, record_of, write_labels
from labelwise.infer.image import as_image
from labelwise.infer.maps import map_paths, write_maps
from labelwise.infer.model import Model, load_model
from labelwise.infer.record import deciding, read_record, told_beside
from labelwise.infer.scans import Scan
from labelwise.infer.sliding_window import InferenceConfig, explained_out_of_memory
from labelwise.preprocess.pipeline import Prepared
from labelwise.types import Volume

FAILED = "failed.csv"
_loading = threading.Lock()
Warn = Callable[[Scan, Volume], list[dict[str, str]]]
"""What is wrong with a scan that was read, as plain values; raises a DataError if it must not be segmented."""
Seen = Callable[[Scan, Sequence[str]], str]
"""From a scan and the hashes of its images: "train" or "validation" if the model has seen it, else ""."""


def predict_cohort(
    model: Model,
    scans: Sequence[Scan],
    output_folder: Path | str,
    *,
    label_format: str = "nifti",
    binary: bool = False,
    maps: Collection[str] = (),
    versions: Mapping[str, str | None] = MappingProxyType({}),
    overwrite: bool = False,
    warn: Warn | None = None,
    seen: Seen | None = None,
    progress: ShowProgress = silent,
    windows: ShowProgress = silent,
    elsewhere: Elsewhere | None = None,
) -> list[Outcome[Scan, Path]]:
    """Predict every scan into `output_folder`; returns one outcome per scan, those finished before first.

    What `Model.predict` gives for a scan is what its file holds. `versions` of packages stand in the record, what
    `warn` says of the scan, and whether the model has `seen` it. `maps` are written too: see `labelwise.infer.maps`.
    `progress` is told the scans that are done, `windows` those of the current scan. `elsewhere` are the processes that
    do the work; else this one does.

    A result that is there is kept if it is of this model, of settings that give the same labels, and on the
    grid of the scan; else it is an error of that scan, unless `overwrite` replaces all of them.

    The next scan is read and prepared in a thread while the network of this process works on the current one.

    Errors
        ConfigError     a result would replace an input scan, two scans would share one result, the output
                        folder is a file, or DICOM labels are asked for of a scan that is not DICOM
        ResourceError   the output folder cannot be written to
        What is wrong with one scan is the error of its outcome, and a line in failed.csv.
    """
    folder = Path(output_folder)
    _check_format(scans, label_format)
    _check_targets(scans, folder, label_format)
    written = {
        scan: told_beside(target)
        for scan in scans
        if not overwrite
        and (target := result_path(scan, folder, label_format)).exists()
        and not _maps_missing(scan, folder, model, maps)
    }
    outcomes = [
        _kept(scan, result_path(scan, folder, label_format), record, model, binary)
        for scan, record in written.items()
    ]
    settled = {outcome.item.id for outcome in outcomes}
    _warn_of_calibration({each.item.id: written[each.item] for each in outcomes if each.error is None}, model)
    sizes = {scan.id: _num_voxels(scan) for scan in scans if scan.id not in settled}
    waiting = sorted((scan for scan in scans if scan.id in sizes), key=lambda scan: -sizes[scan.id])
    progress("predict", len(settled), len(scans))
    discard_leftovers(folder / FAILED)
    _write_failures(folder, outcomes)  # a folder that cannot be written to must show before the work
    task = _Task(folder, label_format, binary, tuple(maps), dict(versions), warn, seen)
    with closing(
        elsewhere.predict(task, model, waiting) if elsewhere else _predict_here(task, model, waiting, windows)
    ) as found_now:
        for outcome in found_now:
            outcomes.append(outcome)
            if outcome.error is not None:
                _write_failures(folder, outcomes)
            progress("predict", len(outcomes), len(scans))
    if all(outcome.error is None for outcome in outcomes):
        (folder / FAILED).unlink()
    return outcomes


@dataclass(frozen=True)
class Elsewhere:
    """Processes that predict: one for each device of this machine, or the workers of a cluster.

    Each loads the model itself, once, and takes the next scan when it has done one.
    """

    models: tuple[Path, ...]  # absolute
    classifier: str | None = None
    devices: tuple[str, ...] = ("auto",)
    engine: str = "local"  # or dask://host:port, whose workers take the first of `devices`

    def predict(
        self, task: _Task, model: Model, scans: Sequence[Scan]
    ) -> Generator[Outcome[Scan, Path], None, None]:
        """The outcomes of scans as they finish; `model` is that which the processes load."""
        there = replace(task, folder=task.folder.resolve())  # other processes may stand in other folders
        job = partial(_predict_alone, there, self, model.config, model.id)
        given = {scan.id: scan for scan in scans}
        resolved = [replace(scan, images=tuple(image.resolve() for image in scan.images)) for scan in scans]
        folders = {image.parent for scan in resolved for image in scan.images}
        shared = [there.folder, *self.models, *sorted(folders)]
        for outcome in run_jobs(
            job, resolved, engine=self.engine, shared=shared, apart=True, places=self.devices
        ):
            scan = given[outcome.item.id]
            path = result_path(scan, task.folder, task.label_format) if outcome.result else None
            yield Outcome(scan, path, outcome.error)


@dataclass(frozen=True)
class _Task:
    """What is done with each scan of a cohort."""

    folder: Path
    label_format: str
    binary: bool
    maps: tuple[str, ...]
    versions: dict[str, str | None]
    warn: Warn | None
    seen: Seen | None


def _predict_here(
    task: _Task, model: Model, scans: Sequence[Scan], windows: ShowProgress
) -> Generator[Outcome[Scan, Path], None, None]:
    if not scans:
        return
    with closing(_read_ahead(model, scans, task.warn)) as prepared:

        def predict(scan: Scan) -> Path:
            with naming(scan.id, scan.images[0]):
                return _predict(task, model, scan, next(prepared), windows)

        yield from run_jobs(predict, scans, workers=1)


def _predict_alone(task: _Task, place: Elsewhere, config: InferenceConfig, expected: str, scan: Scan) -> Path:
    """One scan in a process of its own, whose model stays loaded for the next one."""
    with _loading:  # a worker of a cluster may have several threads
        loaded = _loaded(place.models, place.classifier, own_place() or place.devices[0])
    if loaded.id != expected:
        raise CheckpointError(
            "the model was changed while it predicts",
            file=place.models[0],
            found=f"model '{loaded.id}'",
            expected=f"model '{expected}'",
            do="repeat the command",
        )
    model = replace(loaded, config=config)
    (outcome,) = _predict_here(task, model, [scan], silent)
    if outcome.error is not None:
        raise outcome.error
    return result_path(scan, task.folder, task.label_format)


@lru_cache(maxsize=1)
def _loaded(models: tuple[Path, ...], classifier: str | None, device: str) -> Model:
    return load_model(models, device, classifier=classifier)


def result_path(scan: Scan, folder: Path, label_format: str = "nifti") -> Path:
    """Where the labels of a scan are written."""
    return folder / f"{scan.id}{LABEL_FORMATS[label_format]}"


def _predict(task: _Task, model: Model, scan: Scan, prepared: Future[_Ready], windows: ShowProgress) -> Path:
    target = result_path(scan, task.folder, task.label_format)
    start = time.perf_counter()
    with explained_out_of_memory():  # of the reading too
        ready = prepared.result()
        found = model.examine_prepared(ready.prepared, windows)
    flags = [
        {"code": flag.code, "class": flag.structure, "what": flag.what, "do": flag.do} for flag in found.flags
    ]
    contents = [hash_file(image) for image in scan.images]
    known = task.seen(scan, contents) if task.seen else ""
    record = {
        "case": scan.id,
        "images": [image.name for image in scan.images],
        "classes": dict(enumerate(model.label_space.names)),
        "contents": contents,
        **({"seen": known} if known else {}),
        **({"missing_channels": [number + 1 for number in scan.missing]} if scan.missing else {}),
        "intensity": scan.intensity,
        "model": model.id,
        **({"models": {member.id: member.name for member in model.members}} if model.members else {}),
        **({"thresholds": model.info.thresholds} if model.info.thresholds else {}),
        "certainty": {name: asdict(found.certainty[name]) for name in model.label_space.structures},
        "temperature": model.temperature,
        **({"calibration": model.calibration.id} if model.calibration else {}),
        "grid": str(read_geometry(scan.images[0], scan.layout)),
        "inference": asdict(model.config),
        **({"binary": True} if task.binary else {}),
        **({"warnings": ready.warnings + flags} if ready.warnings or flags else {}),
        "device": model.device.type,
        "versions": task.versions,
        "seconds": round(time.perf_counter() - start, 3),
    }
    discard_leftovers(target)
    target.unlink(missing_ok=True)  # if this process dies here, no old result stands beside a new record
    if task.maps:
        with explained_out_of_memory():
            write_maps(target.parent, scan, model, ready.prepared, task.maps)
    write_json(record_of(target), record)
    write_labels(
        target,
        found.labels,
        like=scan.images[0],
        layout=scan.layout,
        names=model.label_space.names,
        binary=task.binary,
    )
    return target


class _Ready(NamedTuple):
    """A scan that was read and prepared, and what is to be said about it."""

    prepared: Prepared
    warnings: list[dict[str, str]]


def _read_ahead(
    model: Model, scans: Sequence[Scan], warn: Warn | None
) -> Generator[Future[_Ready], None, None]:
    """The prepared scans in order; never more than one is read before it is asked for."""

    def prepare(scan: Scan) -> _Ready:
        image = as_image(scan.given, layout=scan.layout)
        warnings = warn(scan, image.volume) if warn else []
        return _Ready(model.prepare_image(image, scan.intensity), warnings)

    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(prepare, scans[0])
        for scan in scans[1:]:
            current, following = following, pool.submit(prepare, scan)
            yield current
        yield following


def _maps_missing(scan: Scan, folder: Path, model: Model, maps: Collection[str]) -> bool:
    """Whether maps that are asked for are not there, or are those of another temperature."""
    paths = [path for kind in maps for path in map_paths(folder, scan.id, kind, model.label_space.names)]
    if not all(path.exists() for path in paths):
        return True
    return bool(paths) and read_record(folder / f"{scan.id}.json").get("temperature") != model.temperature


def _warn_of_calibration(kept: Mapping[str, Mapping[str, Any]], model: Model) -> None:
    """Say which results (id -> record) were written under another calibration: it decides all but their labels."""
    now = model.calibration.id if model.calibration else None
    warn_about(
        "the model was calibrated after these results were written, or its calibration was removed: their labels hold, "
        "certainty and flags are of before (--overwrite writes them anew)",
        [name for name, record in kept.items() if record.get("calibration") != now],
    )


def _kept(
    scan: Scan, target: Path, record: Mapping[str, Any], model: Model, binary: bool
) -> Outcome[Scan, Path]:
    """The outcome of a scan that has a result and its record: done, or an error if they are not what is asked for."""
    writer, settings = record.get("model"), deciding(record.get("inference"))
    wanted = deciding(json.loads(json.dumps(asdict(model.config))))
    if writer != model.id:
        what = "the result was not written by this model"
        found = f"model '{writer}'" if writer else "no record of a model"
        expected = f"model '{model.id}'"
    elif changed := sorted(name for name in wanted if settings.get(name) != wanted[name]):
        what = "the result was predicted with other settings"
        found = ", ".join(f"{name} {settings.get(name)}" for name in changed)
        expected = ", ".join(f"{name} {wanted[name]}" for name in changed)
    elif binary != record.get("binary", False):
        what = "the result is of the other type of DICOM-SEG"
        found, expected = ("LABELMAP", "BINARY") if binary else ("BINARY", "LABELMAP")
    elif grids := _different_grids(scan, target, record):
        what = "the result does not lie on the grid of this scan"
        found, expected = grids
    elif _replaced(scan, record):
        what = "the scan was replaced since this result was written"
        found, expected = "a result of other voxels on the same grid", "the result of this scan"
    else:
        return Outcome(scan, result=target)
    do = "choose another output folder, or predict again with --overwrite"
    return Outcome(
        scan, error=ConfigError(what, case=scan.id, file=target, found=found, expected=expected, do=do)
    )


def _replaced(scan: Scan, record: Mapping[str, Any]) -> bool:
    """Whether the files of a scan are others than those that the record knows; those that are gone are not."""
    known = record.get("contents")
    if not isinstance(known, list) or not all(image.exists() for image in scan.images):
        return False
    return known != [hash_file(image) for image in scan.images]


def _different_grids(scan: Scan, target: Path, record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The grid of a result and that of its scan, if they differ: another scan may have had the same name."""
    try:
        expected = read_geometry(scan.images[0], scan.layout)
    except (DataError, OSError):
        return None  # what was predicted before the scan was moved away is still right
    if is_dicom(target):  # has no grid of its own
        noted = str(record.get("grid"))
        return None if noted == str(expected) else (noted, str(expected))
    try:
        found = read_geometry(target)
    except DataError:
        return "a damaged file", str(expected)
    return None if expected.matches(found) else (str(found), str(expected))


def _check_format(scans: Sequence[Scan], label_format: str) -> None:
    if not LABEL_FORMATS[label_format].endswith(".dcm"):
        return
    for scan in scans:
        if not scan.images[0].is_dir() and not is_dicom(scan.images[0]):
            raise ConfigError(
                "DICOM labels are written for a DICOM series",
                case=scan.id,
                file=scan.images[0],
                do="choose nifti or nrrd by --format, or name the series",
            )


def _check_targets(scans: Sequence[Scan], folder: Path, label_format: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError("the output folder is a file", file=folder, do="choose another output folder")
    targets = {result_path(scan, folder, label_format).resolve(): scan for scan in scans}
    if len(targets) < len(scans):
        raise ConfigError("two scans have the same id", found=f"{len(scans)} scans, {len(targets)} ids")
    for scan in scans:
        for image in scan.images:
            if image.resolve() in targets:
                raise ConfigError(
                    "a result would replace an input scan", file=image, do="choose another output folder"
                )


def _num_voxels(scan: Scan) -> int:
    """Size of a scan by its header; 0 if that cannot be read, so that the failure comes last."""
    try:
        x, y, z = read_geometry(scan.images[0], scan.layout).shape
    except (DataError, OSError):
        return 0
    return x * y * z


def _write_failures(folder: Path, outcomes: Sequence[Outcome[Scan, Path]]) -> None:
    failed = [(outcome.item, outcome.error) for outcome in outcomes if outcome.error is not None]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("case", "file", "message"))
    writer.writerows(
        cells((scan.id, error.file or scan.images[0], _one_line(error))) for scan, error in failed
    )
    write_text(folder / FAILED, table.getvalue())


def _one_line(error: LabelwiseError) -> str:
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines())
