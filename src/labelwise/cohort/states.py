"""What is known about each class of a case, as two cells of manifest.csv.

    states          liver=verified;spleen=corrected;kidneys=predicted:9f8e0c1d2b3a4f56
    proposals       9f8e0c1d2b3a4f56=proposals/9f8e0c1d2b3a4f56/case_001.nii.gz

Annotated classes that `states` does not name were drawn by the makers of the data set. A predicted class is not
annotated: nobody has judged it. The digits are the id of the model, whose label map `proposals` names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from labelwise.cohort.text import Row
from labelwise.errors import did_you_mean
from labelwise.types import ANNOTATED, CORRECTED, PREDICTED, STATES, VERIFIED, Case, LabelSpace, Proposal


@dataclass(frozen=True)
class States:
    """The states of a row, as the fields of `Case`; paths as they are written."""

    corrected: frozenset[str]
    verified: frozenset[str]
    proposals: tuple[Proposal, ...]


def read_states(row: Row, label_space: LabelSpace, annotated: Collection[str]) -> States:
    """The two cells of a row.

    Errors
        DataError   an unknown class or state, a class with two states, a state that contradicts the column `annotated`,
                    a predicted class without the label map of its model, or such a map without a class
    """
    found: dict[str, tuple[str, str]] = {}  # structure -> state, model
    for item in row.items("states"):
        structure, _, rest = item.partition("=")
        state, _, model = rest.partition(":")
        _check_state(row, structure, state, model, label_space)
        if found.setdefault(structure, (state, model)) != (state, model):
            row.refuse("states", f"'{structure}' has two states", do="keep one of them")
        if (state == PREDICTED) == (structure in annotated):
            is_predicted = state == PREDICTED
            row.refuse(
                "states",
                f"'{structure}' is {state}, but stands {'' if is_predicted else 'not '}in the column 'annotated'",
                expected="annotated, corrected and verified classes stand in 'annotated', predicted ones do not",
                do=f"take '{structure}' out of one of the cells"
                if is_predicted
                else f"add '{structure}' there",
            )
    return States(
        frozenset(structure for structure, (state, _) in found.items() if state == CORRECTED),
        frozenset(structure for structure, (state, _) in found.items() if state == VERIFIED),
        _proposals(
            row, {structure: model for structure, (state, model) in found.items() if state == PREDICTED}
        ),
    )


def states_cell(case: Case, label_space: LabelSpace) -> str:
    """The states that do not follow from the column `annotated`, in the order of the classes."""
    model = {structure: each.model for each in case.proposals for structure in each.structures}
    states = {structure: state for structure, state in case.states.items() if state != ANNOTATED}
    return ";".join(
        f"{structure}={states[structure]}"
        + (f":{model[structure]}" if states[structure] == PREDICTED else "")
        for structure in label_space.structures
        if structure in states
    )


def proposals_cell(files: Mapping[str, str]) -> str:
    """Id of a model -> path of its label map, as a cell."""
    return ";".join(f"{model}={path}" for model, path in files.items())


def _check_state(row: Row, structure: str, state: str, model: str, label_space: LabelSpace) -> None:
    if structure not in label_space.structures:
        row.refuse(
            "states",
            f"unknown class '{structure}'{did_you_mean(structure, label_space.structures)}",
            expected=", ".join(label_space.structures),
        )
    if state not in STATES:
        row.refuse(
            "states",
            f"unknown state '{state}'{did_you_mean(state, STATES)}",
            expected=f"{structure}=corrected, {structure}=verified or {structure}=predicted:MODEL",
        )
    if bool(model) != (state == PREDICTED):
        row.refuse(
            "states",
            "a predicted class names its model, another one does not",
            expected="liver=predicted:MODEL",
        )


def _proposals(row: Row, model_of: Mapping[str, str]) -> tuple[Proposal, ...]:
    files: dict[str, str] = {}
    for item in row.items("proposals"):
        model, equals, path = item.partition("=")
        if not equals or not path or files.setdefault(model, path) != path:
            row.refuse("proposals", "the cell cannot be understood", expected="MODEL=path, joined by ';'")
    if missing := set(model_of.values()) - set(files):
        row.refuse("proposals", f"the label map of model '{missing.pop()}' is not named")
    if idle := set(files) - set(model_of.values()):
        row.refuse(
            "proposals", f"no class is predicted by model '{idle.pop()}'", do="name its classes in 'states'"
        )
    return tuple(
        Proposal(
            Path(path), model, frozenset(structure for structure in model_of if model_of[structure] == model)
        )
        for model, path in files.items()
    )
