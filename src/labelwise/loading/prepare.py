"""From a manifest to a store: every scan is read, checked, preprocessed and written once.

    files --hash--> key        a scan whose key is in the store is done
    training scans --fingerprint--> plan, unless one is given or lies in the store
    scan --pipeline.apply--> prepared scan --cache.write_case--> store

Each scan is a job of its own. One that fails is reported at the end; the others are kept, and a repeated
`prepare` only does what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from labelwise.atomic import discard_leftovers, write_json
from labelwise.cohort.manifest import Manifest, check_same_grid, read_case_image, read_case_labels
from labelwise.cohort.meaning import data_set_of_file
from labelwise.cohort.parts import part_key
from labelwise.console import ShowProgress, silent
from labelwise.engine import run_jobs
from labelwise.errors import ConfigError, DataError, LabelwiseError, ResourceError, naming
from labelwise.formats import files_of, hash_file
from labelwise.loading.checked import read_sealed, sealed
from labelwise.loading.store import FORMAT, Store, write_case
from labelwise.preprocess import pipeline
from labelwise.preprocess.fingerprint import ScanStatistics, make_plan, scan_statistics
from labelwise.preprocess.pipeline import Plan
from labelwise.settings import build_settings
from labelwise.types import Case

Item = TypeVar("Item")
Result = TypeVar("Result")
Stamped = tuple[int, int, int, str]  # see `_stamp`, and the SHA-256 of the content


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did: the store, its plan, and the scans that could not be prepared."""

    store: Store
    plan: Plan
    keys: Mapping[str, str]  # case id -> content hash, for every case that is in the store
    written: tuple[str, ...]  # ids of the cases prepared now; the others were there already
    failures: Mapping[str, LabelwiseError]  # case id -> why it is not in the store
    hashes: Mapping[Path, str] = field(default_factory=dict)  # file -> hash of its content

    def require_all(self) -> None:
        """Raise one DataError that tells about every failed case, if there are any."""
        if self.failures:
            raise DataError(
                f"{len(self.failures)} of {len(self.failures) + len(self.keys)} scans could not be prepared; "
                "the others are kept\n" + "\n".join(str(error) for error in self.failures.values()),
                do="repair these cases or take them out of the manifest, then repeat `labelwise prepare`",
            )


class Jobs(NamedTuple):
    """How the jobs of a cohort are run: see `engine.run_jobs`."""

    workers: int | None = None
    engine: str = "local"
    progress: ShowProgress = silent
    shared: tuple[Path, ...] = ()  # what every worker must see, wherever it runs

    def run(
        self, what: str, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> tuple[list[tuple[Item, Result]], list[tuple[Item, LabelwiseError]]]:
        """Items with their results, and items with the errors that stopped them, in the order of `items`."""
        results: dict[Item, Result] = {}
        errors: dict[Item, LabelwiseError] = {}
        outcomes = run_jobs(function, items, engine=self.engine, workers=self.workers, shared=self.shared)
        for done, outcome in enumerate(outcomes, start=1):
            if outcome.error is None:
                results[outcome.item] = cast(Result, outcome.result)
            else:
                errors[outcome.item] = outcome.error
            self.progress(what, done, len(items))
        in_order = [(item, results[item]) for item in items if item in results]
        return in_order, [(item, errors[item]) for item in items if item in errors]


IN_ALL_PROCESSES = Jobs()


def prepare(
    manifest: Manifest,
    folder: Path | str,
    plan: Plan | None = None,
    *,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> Prepared:
    """Bring every case of the manifest that takes part (its split is not empty) into the store `folder`.

    Without a `plan` the one in the store is used, so that all manifests made by `simulate` share one; a new
    store gets a plan from the fingerprint of its training scans. Delete plan.json to have it made anew.
    `progress` is told after each scan.

    Errors
        DataError       there is no plan and no training scan to make one from. A case that fails by itself is
                        no error: see `Prepared.failures`
        ResourceError   the store cannot be written
    """
    # Absolute, because the workers of a cluster have another working directory.
    store, jobs = Store(Path(folder).absolute()), Jobs(workers, engine, progress, (Path(folder).absolute(),))
    cases = [case for case in manifest.cases if case.split]
    hashes, failures = _hash_files(cases, store.folder / "hashes.json", jobs)
    if plan is not None:
        store.set_plan(plan)
    else:
        plan = _stored_plan(store) or _new_plan(store, manifest, jobs)
    discard_leftovers(store.case_folder("*"))

    keys = {
        case.id: content_key(case, manifest, plan, hashes.__getitem__)
        for case in cases
        if case.id not in failures
    }
    # Cases with the same content share one folder.
    missing = {keys[case.id]: case for case in cases if case.id in keys and not store.has(keys[case.id])}
    # The largest go first, so that none is waited for at the end.
    waiting = sorted(missing.items(), key=lambda pair: _num_bytes(pair[1]), reverse=True)
    job = partial(prepare_case, manifest=_without_cases(manifest), plan=plan, store=store)
    _, errors = jobs.run("prepare", job, waiting)

    failed = {key: error for (key, _), error in errors}
    failures |= {name: failed[key] for name, key in keys.items() if key in failed}
    keys = {name: key for name, key in keys.items() if key not in failed}
    store.add_keys(keys)
    written = tuple(name for name, key in keys.items() if key in missing)
    return Prepared(store, plan, keys, written, failures, hashes)


def prepare_case(job: tuple[str, Case], manifest: Manifest, plan: Plan, store: Store) -> None:
    """Read, preprocess and store one (content key, case). Errors name the case."""
    key, case = job
    if store.has(key):  # another process that fills the same store was here first
        return
    with _naming(case):
        image = read_case_image(case, manifest)
        if image.data.min() == (level := image.data.max()):
            raise DataError(
                f"the image is empty: every voxel is {level:g}",
                do="replace the file, or take the case out of the manifest",
            )
        labels = read_case_labels(case, manifest, erase=False) if case.labels else None
        if labels is not None:
            check_same_grid(case, image, labels)
        intensity = manifest.data_set_of(case).intensity
        prepared = pipeline.apply(image, plan, intensity=intensity, labels=labels, missing=case.missing)
    if not store.has(key):
        write_case(store.case_folder(key), prepared.image, prepared.labels, prepared.undo, case.missing)


def content_key(
    case: Case, manifest: Manifest, plan: Plan, file_hash: Callable[[Path], str] | None = None
) -> str:
    """The name of a prepared scan: a hash of all that decides about its voxels.

    That is the bytes of its files, the plan, how the files of its data set are read, and the format of the
    store; not what is annotated in the case, because structures are hidden only when a patch is read.
    """
    file_hash = file_hash or hash_file
    data_set = manifest.data_set_of(case)
    content = {
        "format": FORMAT,
        "images": [file_hash(path) for path in case.images],
        **({"missing": case.missing} if case.missing else {}),
        "labels": file_hash(case.labels) if case.labels else None,
        "modality": data_set.intensity,  # its name in stores of before
        "layout": asdict(data_set.layout),
        "values": sorted(data_set_of_file(data_set, case.labels).values.items() if case.labels else ()),
        "others": data_set.others,
        "classes": manifest.label_space.names,
        **_regions(manifest),
        "plan": plan.to_json(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def training_statistics(
    manifest: Manifest, jobs: Jobs = IN_ALL_PROCESSES, *, memo: Path | None = None
) -> list[ScanStatistics]:
    """The fingerprint of every readable training scan, also of the unlabelled ones: what `make_plan` needs.

    Labels are seen as the training sees them, so that nothing hidden leaks into the plan. Scans that did not change
    since the file `memo` was written are not read again.

    Errors
        DataError   there is no training scan, or none can be read
    """
    cases = sorted(manifest.split("train"), key=lambda case: case.id)  # sums depend on the order
    if not cases:
        raise DataError(
            "no case of the manifest is in the split 'train'", do="fill the column 'split'", code="no-case"
        )
    known = _known_statistics(memo, manifest)
    job = partial(_scan_statistics, manifest=_without_cases(manifest))
    results, errors = jobs.run("fingerprint", job, [case for case in cases if case.id not in known])
    found = known | {case.id: statistics for case, statistics in results}
    if not found:
        raise DataError(
            f"none of the {len(cases)} training scans can be read; the first error was\n{errors[0][1]}"
        )
    if memo is not None and results:
        kept = {
            case.id: {"key": _statistics_key(case, manifest), **asdict(found[case.id])}
            for case in cases
            if case.id in found
        }
        with suppress(ResourceError):  # it only saves time
            write_json(memo, sealed(kept))
    return [found[case.id] for case in cases if case.id in found]


def _known_statistics(memo: Path | None, manifest: Manifest) -> dict[str, ScanStatistics]:
    """Fingerprints by case id, of scans that did not change; none if the file is missing or damaged."""
    known: dict[str, ScanStatistics] = {}
    rows = {} if memo is None else _read_memo(memo)
    for case in manifest.split("train"):
        row: Any = rows.get(case.id)
        with suppress(ConfigError, OSError, DataError):
            if isinstance(row, dict) and row.get("key") == _statistics_key(case, manifest):
                values = {name: value for name, value in row.items() if name != "key"}
                known[case.id] = build_settings(ScanStatistics, values, str(memo))
    return known


def _statistics_key(case: Case, manifest: Manifest) -> str:
    """What the fingerprint of a scan depends on: its files, how they are read, and what is annotated."""
    data_set = manifest.data_set_of(case)
    content = {
        "format": 5,
        "files": [[_name(path), *_stamp(path)] for path in _paths(case)],
        "annotated": [*sorted(case.annotated), *map(part_key, case.parts)],
        **({"missing": case.missing} if case.missing else {}),
        "intensity": data_set.intensity,
        "layout": asdict(data_set.layout),
        "values": sorted(data_set.values.items()),
        "classes": manifest.label_space.names,
        **_regions(manifest),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _regions(manifest: Manifest) -> dict[str, Any]:
    """The regions, if there are some: stores and fingerprints of before are found again."""
    return {"regions": manifest.label_space.regions} if manifest.label_space.regions else {}


def _hash_files(
    cases: Sequence[Case], memo_file: Path, jobs: Jobs
) -> tuple[dict[Path, str], dict[str, LabelwiseError]]:
    """The hash of every file, and the errors by case id. Files that did not change are not read again."""
    memo = _read_memo(memo_file)
    unknown = [case for case in cases if not all(_is_known(path, memo) for path in _paths(case))]
    # In this process: reading is what takes the time, and the start of worker processes takes seconds.
    results, errors = jobs._replace(workers=1, engine="local").run("hash", _hash_case, unknown)
    if results:
        for _, stamped in results:
            memo |= stamped
        write_json(memo_file, sealed(memo))
    hashes = {path: memo[_name(path)][-1] for case in cases for path in _paths(case) if _name(path) in memo}
    return hashes, {case.id: error for case, error in errors}


def _read_memo(file: Path) -> dict[str, Any]:
    """Known hashes by path; none if the file is missing or damaged: they are computed anew."""
    try:
        memo: dict[str, Any] = read_sealed(file)
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _hash_case(case: Case) -> dict[str, Stamped]:
    with _naming(case):
        return {_name(path): (*_stamp(path), hash_file(path)) for path in _paths(case)}


def _is_known(path: Path, memo: Mapping[str, Stamped]) -> bool:
    known = memo.get(_name(path))
    return known is not None and path.exists() and list(_stamp(path)) == list(known[:-1])


def _stamp(path: Path) -> tuple[int, int, int]:
    """Size and two times of change, in ns: cheap signs that a file is still the same.

    The time of its content can be set, and copying programs do; that of its entry cannot, so a file that was replaced
    by another one of equal size and time is noticed.
    """
    states = [file.stat() for file in files_of(path)]
    return (
        sum(state.st_size for state in states),
        max((state.st_mtime_ns for state in states), default=0),
        max((state.st_ctime_ns for state in states), default=0),
    )


def _paths(case: Case) -> list[Path]:
    return list(dict.fromkeys((*case.images, case.labels) if case.labels else case.images))


def _name(path: Path) -> str:
    return str(path.absolute())


def _num_bytes(case: Case) -> int:
    return sum(_stamp(path)[0] for path in case.images)


def _scan_statistics(case: Case, manifest: Manifest) -> ScanStatistics:
    with _naming(case):
        image = read_case_image(case, manifest)
        labels = read_case_labels(case, manifest) if case.annotated else None
        if labels is not None:
            check_same_grid(case, image, labels)
        found = scan_statistics(image, manifest.data_set_of(case).intensity, labels)
        return replace(found, channels=found.channels + len(case.missing))


def _stored_plan(store: Store) -> Plan | None:
    return store.plan if (store.folder / "plan.json").exists() else None


def _new_plan(store: Store, manifest: Manifest, jobs: Jobs) -> Plan:
    made = make_plan(training_statistics(manifest, jobs))
    return store.begin(made)


def _without_cases(manifest: Manifest) -> Manifest:
    """Classes and data sets: a job gets its own case; all the others would have to be sent with each."""
    return manifest.replace_cases(manifest.cases[:1])


@contextmanager
def _naming(case: Case) -> Iterator[None]:
    try:
        with naming(case.id, case.images[0]):
            yield
    except FileNotFoundError as error:
        raise DataError(
            "a file of the case is missing", case=case.id, file=error.filename, code="not-found"
        ) from error
