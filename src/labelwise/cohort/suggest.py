"""What to annotate next: masks of structures, not scans.

    candidates      every structure that nobody annotated in a case
    class           the structure that was annotated in the fewest cases so far, those of this list among them
    case            among the cases in which a model sees that structure, of the data set and the patient from which
                    this list has the fewest masks of it: drawn at random, or that of the lowest expected Dice

Counting by structures keeps small and rare ones from being passed over, and a mask of a structure that is not in the
scan teaches little. A structure that the model sees in no case at all is one that it does not know yet: any case
will do.

Drawn at random on these terms is what published strategies of active learning are to be measured by,
and most are not above it (Lüth et al., nnActive, TMLR 2025, https://arxiv.org/abs/2511.19183).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from labelwise.cohort.review import Noted, noted
from labelwise.errors import ConfigError
from labelwise.types import Case, LabelSpace

By = Literal["random", "doubt"]


@dataclass(frozen=True)
class Candidate:
    """A structure that nobody annotated in a case."""

    case: str
    group: str  # patient
    data_set: str
    class_name: str
    voxels: int | None  # that a model takes for it; None: no model was asked
    expected_dice: float  # of what the model says; NaN: nobody noted it


def open_masks(cases: Iterable[Case], label_space: LabelSpace) -> list[Candidate]:
    """Every structure that nobody annotated in a case, with what the proposals of the case say of it."""
    nothing = Noted(None, math.nan)
    return [
        Candidate(case.id, case.group, case.data_set, name, *facts.get(name, nothing))
        for case in cases
        for facts in [noted(case, label_space)]
        for name in label_space.structures
        if name not in case.annotated
    ]


def suggest_masks(
    candidates: Iterable[Candidate],
    annotated: Mapping[str, int],
    number: int,
    *,
    by: By = "random",
    seed: int = 0,
) -> list[Candidate]:
    """The masks to draw next, in order: fewer than `number` if no more are left.

    Arguments
        annotated   class -> number of cases in which it is annotated already
        by          who is chosen among equal cases: anybody, or the one of the lowest expected Dice

    Errors
        ConfigError     an unknown strategy; "doubt" without any expected Dice
    """
    if by not in get_args(By):
        raise ConfigError(f"unknown strategy '{by}'", expected=", ".join(get_args(By)))
    left = _worth_a_mask(list(candidates))
    if by == "doubt" and left and all(math.isnan(one.expected_dice) for one in left):
        raise ConfigError(
            "no model says how sure it is of these cases",
            do="labelwise predict MODEL --into DATA, or suggest --by random",
        )
    # A place in a random order for each, drawn once: the list for 20 begins with the list for 10.
    order = np.random.default_rng(seed).permutation(len(left)).tolist()
    places = {(one.case, one.class_name): place for one, place in zip(left, order, strict=True)}
    masks, chosen = Counter(annotated), list[Candidate]()
    drawn = Counter[tuple[str, str]]()  # class, and patient or data set
    while left and len(chosen) < number:
        rarest = min({one.class_name for one in left}, key=lambda name: (masks[name], name))
        best = min(
            (one for one in left if one.class_name == rarest),
            key=lambda one: (
                drawn[one.class_name, one.group],
                drawn[one.class_name, one.data_set],
                one.expected_dice if by == "doubt" and not math.isnan(one.expected_dice) else 1.0,
                places[one.case, one.class_name],
            ),
        )
        chosen.append(best)
        left.remove(best)
        masks[rarest] += 1
        drawn.update([(rarest, best.group), (rarest, best.data_set)])
    return chosen


def _worth_a_mask(candidates: list[Candidate]) -> list[Candidate]:
    """Those in which a model sees the structure, or could not say: none was asked, or it does not know it yet."""
    known = {one.class_name for one in candidates if one.voxels}
    return [one for one in candidates if one.voxels or one.voxels is None or one.class_name not in known]
