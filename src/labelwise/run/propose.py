"""`propose`: what a model says of the scans of a manifest becomes proposals in it, for people to judge."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from labelwise.cohort.history import append_history
from labelwise.cohort.manifest import Manifest, manifest_file, read_manifest, write_manifest
from labelwise.cohort.review import class_of
from labelwise.console import ShowProgress, silent
from labelwise.errors import DataError
from labelwise.infer.cohort import predict_cohort
from labelwise.infer.model import Model
from labelwise.lock import only_writer
from labelwise.run.environment import environment
from labelwise.run.predict import (
    PredictionResult,
    changed_settings,
    check_channels,
    load_for,
    no_case_in,
    problems_of,
    result_of,
    scan_of,
)
from labelwise.types import Case, Proposal

__all__ = ["propose"]

PROPOSALS = "proposals"
logger = logging.getLogger("labelwise")


@dataclass(frozen=True)
class _Wanted:
    """A case, and what the model may propose for it."""

    case: Case
    structures: frozenset[str]


def propose(
    model: Path | str | Sequence[Path | str],
    data: Path | str,
    *,
    split: str = "train",
    intensity: str | None = None,
    classifier: str | None = None,
    device: str = "auto",
    engine: str = "local",
    settings: Mapping[str, Any] | None = None,
    progress: ShowProgress = silent,
) -> PredictionResult:
    """Segment the cases of a manifest and enter the results as proposals: classes of the state "predicted".

    Only classes that no person has annotated, corrected or verified are proposed. A newer proposal takes the place of
    an older one in the manifest; label files stay, in ``proposals/MODEL/`` beside it, and ``history.jsonl`` tells what
    was when. Proposals teach nobody unless `learn_from` of a training names "predicted".

    Arguments
        model       model folder, or the folder of a run; of several the mean of their scores decides
        data        folder of the manifest
        split       which cases
        intensity, classifier, device, engine, settings      as in `labelwise.run.predict`

    Errors
        CheckpointError     not a model
        ConfigError         unknown intensities, classifier or setting
        DataError           no such case, or none in which a class that the model knows is open. A scan that cannot be
                            read is a failure in the result instead
        ResourceError       another program is writing into the folder
    """
    file = manifest_file(data)
    folder = file.parent
    loaded, elsewhere = load_for(model, device, classifier, engine)
    loaded = replace(loaded, config=changed_settings(loaded, settings or {}))
    with only_writer(folder):
        manifest = read_manifest(file)
        wanted = _wanted(manifest, file, split, loaded)
        scans = [
            scan_of(
                each.case, manifest, loaded.intensity(intensity or manifest.data_set_of(each.case).intensity)
            )
            for each in wanted
        ]
        target = folder / PROPOSALS / _name(loaded)

        outcomes = predict_cohort(
            loaded,
            scans,
            target,
            versions=environment()["versions"],
            warn=partial(problems_of, training=loaded.info.training),
            progress=progress,
            elsewhere=elsewhere,
        )
        result = result_of(target, outcomes)
        _enter(manifest, folder, loaded.id, wanted, result.written)
    return result


def _wanted(manifest: Manifest, file: Path, split: str, model: Model) -> list[_Wanted]:
    cases = manifest.split(split)
    if not cases:
        raise no_case_in(split, manifest, file)
    check_channels(cases, model.channels)
    classes = {name: class_of(name, manifest.label_space) for name in model.label_space.structures}
    known = frozenset(filter(None, classes.values()))
    if not known:
        raise DataError(
            "the model knows no class of the manifest",
            file=file,
            found=", ".join(model.label_space.structures),
            expected=", ".join(manifest.label_space.structures),
        )
    if strange := [name for name, found in classes.items() if found is None]:
        logger.info("classes that the manifest does not know are left out: %s", ", ".join(strange))
    wanted = [_Wanted(case, known - case.annotated) for case in cases if known - case.annotated]
    if not wanted:
        raise DataError(
            f"people have judged all that the model knows, in each of the {len(cases)} cases",
            file=file,
            found=", ".join(sorted(known)),
            do=f"choose other cases by --split, which is '{split}'",
        )
    return wanted


def _name(model: Model) -> str:
    """The folder of the proposals of a model; of one with other settings than it was saved with, another one."""
    trained = {**asdict(model.config), **model.info.inference}
    settings = json.loads(json.dumps(asdict(model.config)))
    if settings == json.loads(json.dumps(trained)):
        return model.id
    return f"{model.id}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def _enter(
    manifest: Manifest, folder: Path, model: str, wanted: Sequence[_Wanted], written: Mapping[str, Path]
) -> None:
    """Write the proposals into the manifest and the history; nothing if they stand there already."""
    changed: dict[str, Case] = {}
    events = []
    for each in wanted:
        if each.case.id not in written:
            continue
        proposal = Proposal(written[each.case.id].absolute(), model, each.structures)
        older = [replace(old, structures=old.structures - each.structures) for old in each.case.proposals]
        case = replace(each.case, proposals=(*(old for old in older if old.structures), proposal))
        if set(case.proposals) == set(each.case.proposals):
            continue
        changed[case.id] = case
        before = each.case.states
        events.append(
            {
                "event": "predicted",
                "case": case.id,
                "model": model,
                "structures": {
                    structure: {"state": "predicted", "before": before.get(structure)}
                    for structure in sorted(each.structures)
                },
                "labels": proposal.file.relative_to(folder.absolute()).as_posix(),
            }
        )
    if changed:
        append_history(folder, events)
        write_manifest(manifest.replace_cases(changed.get(case.id, case) for case in manifest.cases), folder)
