"""What a model is used to, and what is unusual about a result: structures that are cut off, missing or doubled, scans
unlike those of the training, and answers less sure than right ones are.

A part of calibration.json (`labelwise.infer.calibration`):

    structures      class -> annotated cases, and in which part of those that show it each was seen (`StructureHabit`)
    scans           features of training scans: the mean of the encoder's last map over the scan, as a unit vector
    unfamiliar_from, checked    distance to the nearest of them from which a scan is called unlike; number of cases that
                    this follows from

Two thresholds leave `FALSE_ALARMS` of the annotated cases beyond them: that of the distance, and that of the expected
Dice of each class, of the cases in which its true Dice is at least `RIGHT_FROM`.

Source
    Nearest neighbours of features: Sun et al., ICML 2022, https://arxiv.org/abs/2204.06507, here one vector for a scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from labelwise.components.connected import connected_parts
from labelwise.formats.geometry import touched_faces
from labelwise.infer.doubt import Certainty
from labelwise.nets.parts import SegmentationNet
from labelwise.types import Array, Volume

FALSE_ALARMS = 0.1
RIGHT_FROM = 0.6  # true Dice; below, a result has failed
FEWEST_CASES = 5  # of which nothing is called usual
FEWEST_CHECKED = 10  # from which no threshold follows: one in ten of fewer is none
NEARLY_ALL, NEARLY_NONE = 0.95, 0.05
MAIN_PART = 0.1  # of the largest part: smaller ones are specks


@dataclass(frozen=True)
class StructureHabit:
    """How a structure looks in annotated cases."""

    cases: int  # that annotate it
    present: float  # share of these cases with a voxel of it
    single: float  # share, of those with a voxel, in which no second part is a tenth as large as the largest
    reaches: dict[str, float] = field(default_factory=dict)  # end of the scan -> share of those with a voxel
    doubtful_below: float | None = None  # expected Dice; None: too few cases were right


@dataclass(frozen=True)
class Habits:
    """What was usual in annotated cases and in training scans."""

    structures: dict[str, StructureHabit]
    scans: list[list[float]] = field(default_factory=list)
    unfamiliar_from: float | None = None
    checked: int = 0


class Flag(NamedTuple):
    """Something unusual about a result, which may be wrong because of it."""

    code: str  # cut-off, missing, doubled, doubtful or unfamiliar
    structure: str  # "" for the whole scan
    what: str
    do: str


class Examined(NamedTuple):
    """A segmented scan, and what is to be said about it."""

    labels: Volume
    certainty: dict[str, Certainty]  # of each class, background first
    flags: tuple[Flag, ...]


# what is seen of a structure


class Sighting(NamedTuple):
    """A structure in a label map."""

    single: bool
    reaches: tuple[str, ...]


def sightings(labels: Array, names: Sequence[str]) -> dict[str, Sighting]:
    """The structures that have a voxel in a label map (X, Y, Z), RAS+, of class indices in the order of `names`."""
    found = {}
    for name, box in zip(names[1:], ndimage.find_objects(labels, len(names) - 1), strict=True):
        if box is not None:
            faces = touched_faces([each.start for each in box], [each.stop for each in box], labels.shape)
            found[name] = Sighting(_is_single(labels[box] == names.index(name)), tuple(faces))
    return found


def _is_single(mask: Array) -> bool:
    parts, _ = connected_parts(mask, "corners")
    sizes = np.sort(np.bincount(parts.ravel())[1:])
    return len(sizes) < 2 or bool(sizes[-2] < MAIN_PART * sizes[-1])


def habit_of(seen: Sequence[Sighting | None]) -> StructureHabit:
    """From the cases that annotate a structure; None: it is absent there."""
    there = [each for each in seen if each is not None]
    faces = sorted({face for each in there for face in each.reaches})
    return StructureHabit(
        len(seen),
        len(there) / len(seen) if seen else 0.0,
        _share(each.single for each in there),
        {face: _share(face in each.reaches for each in there) for face in faces},
    )


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


# what is seen of a scan


class Features:
    """The mean of what an encoder says at its coarsest scale, over the windows that pass while `watch` lasts."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []  # (B, F) of each batch of windows, on the device

    @contextmanager
    def watch(self, predictor: nn.Module) -> Iterator[None]:
        """Listen to the one network of a predictor; nothing is heard of an ensemble or of parts of a network."""
        networks = [part for part in predictor.modules() if isinstance(part, SegmentationNet)]
        if len(networks) != 1:
            yield
            return
        handle = networks[0].encoder.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def _add(self, module: nn.Module, inputs: Any, scales: Sequence[Tensor]) -> None:
        self._means.append(scales[-1].detach().float().flatten(2).mean(dim=2))

    def vector(self) -> list[float]:
        """The direction of the mean, as a unit vector (F,); empty if nothing was heard."""
        if not self._means:
            return []
        return torch.nn.functional.normalize(torch.cat(self._means).cpu().double().sum(dim=0), dim=0).tolist()


def distance(vector: Sequence[float], scans: Sequence[Sequence[float]]) -> float | None:
    """To the nearest of the training scans, in [0, 2]; None if one of both is not known."""
    if not vector or not scans:
        return None
    return float(np.linalg.norm(np.asarray(scans) - np.asarray(vector), axis=1).min())


# thresholds


def upper_threshold(values: Sequence[float]) -> float | None:
    """Beyond which at most `FALSE_ALARMS` of the values lie; None if they are too few."""
    if len(values) < FEWEST_CHECKED:
        return None
    return float(np.quantile(values, 1 - FALSE_ALARMS, method="higher"))


def lower_threshold(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The expected Dice below which at most `FALSE_ALARMS` of the right cases lie, from (expected, true) Dice."""
    above = upper_threshold([-expected for expected, true in pairs if true >= RIGHT_FROM])
    return None if above is None else -above


# flags


def flags_of(
    habits: Habits, before: Array, after: Array, certainty: Mapping[str, Certainty], vector: Sequence[float]
) -> list[Flag]:
    """What is unusual about a result.

    Arguments
        before, after   (X, Y, Z) labels on the RAS+ grid of the scan, before and after the clean-up, which may have
                        taken the second part of a structure away
        certainty       of each class, background first
        vector          features of the scan
    """
    names = list(certainty)
    parts, seen = sightings(before, names), sightings(after, names)
    flags: list[Flag] = []
    for name in names[1:]:
        habit = habits.structures.get(name)
        if habit is not None and habit.cases >= FEWEST_CASES:
            flags += _unusual(name, habit, parts.get(name), seen.get(name), certainty[name].expected_dice)
    far = distance(vector, habits.scans)
    if far is not None and habits.unfamiliar_from is not None and far > habits.unfamiliar_from:
        what = (
            f"the scan is unlike those of the training: distance {far:.3f}; {1 - FALSE_ALARMS:.0%} of "
            f"{habits.checked} annotated scans lie within {habits.unfamiliar_from:.3f}"
        )
        flags.append(Flag("unfamiliar", "", what, "look at all of the result; it may be wrong and sure"))
    return flags


def _unusual(
    name: str, habit: StructureHabit, parts: Sighting | None, seen: Sighting | None, expected: float | None
) -> Iterator[Flag]:
    look = "look at this structure"
    if seen is None:
        if habit.present >= NEARLY_ALL:
            what = f"{name} is missing; {habit.present:.0%} of {habit.cases} annotated scans show it"
            yield Flag("missing", name, what, look)
        return
    if cut := [face for face in seen.reaches if habit.reaches.get(face, 0.0) <= NEARLY_NONE]:
        yield Flag(
            "cut-off", name, f"{name} is cut off by the {' and '.join(cut)} of the field of view",
            "its volume is too small, or this is no such structure",
        )  # fmt: skip
    if parts is not None and not parts.single and habit.single >= NEARLY_ALL:
        what = (
            f"{name} was found in several parts; it is one part in {habit.single:.0%} of the annotated scans"
        )
        yield Flag("doubled", name, what, "see whether the right part was kept")
    if expected is not None and habit.doubtful_below is not None and expected < habit.doubtful_below:
        what = (
            f"{name} is doubtful: expected Dice {expected:.2f}; of right results {1 - FALSE_ALARMS:.0%} have at "
            f"least {habit.doubtful_below:.2f}"
        )
        yield Flag("doubtful", name, what, look)
