"""What a training may learn from: the labels of a manifest whose states the settings name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

from labelwise.cohort.data_set import DataSet
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.review import learnt, reviewed_data_set, write_reviewed
from labelwise.formats import hash_file
from labelwise.types import PREDICTED, Case


def learnable(manifest: Manifest, states: Collection[str], folder: Path) -> Manifest:
    """The manifest in which training cases are annotated for what may be learnt from, and nothing else.

    Validation and test cases are left alone: only what people drew can be a reference. A training case that may teach
    what a model predicted gets a label file that holds both, in `folder`; files that are there already are not written
    again.

    Errors
        DataError   a proposal is missing or damaged
    """
    data_sets: dict[str, DataSet] = dict(manifest.data_sets)
    cases = []
    for case in manifest.cases:
        if case.split == "train":
            known = frozenset(structure for structure in case.annotated if case.states[structure] in states)
            predicted = (
                {structure for each in case.proposals for structure in each.structures}
                if PREDICTED in states
                else set()
            )
            if predicted:
                data_set = reviewed_data_set(manifest, case)
                data_sets[data_set.name] = data_set
                file = _with_proposals(case, manifest, data_set, folder)
                case = replace(case, labels=file, data_set=data_set.name)
                known = manifest.label_space.told_apart(known)  # the file shows classes, and no region as one
            case = replace(case, annotated=known | predicted)
        cases.append(case)
    return replace(manifest, data_sets=data_sets, cases=tuple(cases))


def _with_proposals(case: Case, manifest: Manifest, data_set: DataSet, folder: Path) -> Path:
    """The label file of what people drew and models propose, named by all that decides about it."""
    decisive = {
        "images": [str(path) for path in case.images],
        "labels": hash_file(case.labels) if case.labels else None,
        "read": [
            asdict(manifest.data_set_of(case).layout),
            sorted(manifest.data_set_of(case).values.items()),
        ],
        "annotated": sorted(case.annotated),
        "proposals": [(hash_file(each.file), sorted(each.structures)) for each in case.proposals],
        "values": sorted(data_set.values.items()),
    }
    name = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]
    file = folder / f"{name}.nii.gz"
    if not file.exists():
        write_reviewed(file, learnt(case, manifest), case, data_set, manifest.label_space)
    return file
