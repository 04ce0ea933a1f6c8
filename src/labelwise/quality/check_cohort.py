"""All cases together: duplicates, what differs from the others of its data set, splits, and what is never annotated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from labelwise.cohort.coverage import never_annotated, never_taken
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.split import groups_of
from labelwise.preprocess.intensity import Intensity
from labelwise.quality.check_case import CaseFacts
from labelwise.quality.check_scan import size_text
from labelwise.quality.problem import Problem, of_cohort, of_image, some
from labelwise.types import Case

SPACING_RATIO = 3.0  # from the median of the data set
ENOUGH_SCANS = 6  # of a data set, to say what is usual in it
FAR = 8.0  # robust standard deviations (1.4826 x median absolute deviation)
# However alike the others are: differences that a contrast phase or another patient makes.
CT_TOLERANCE_HU = 150.0
TOLERANCE = 1.0  # times the usual spread (5 % to 95 %), for intensities without a unit
_TO_STANDARD_DEVIATION = 1.4826


def judge_cohort(manifest: Manifest, facts: Sequence[CaseFacts], digests: Mapping[str, str]) -> list[Problem]:
    """Problems that show only when all cases were read; `digests` of the images that may have a twin."""
    problems: list[Problem] = [*_duplicates(manifest, digests)]
    for inspect in (_channels, _spacings, _intensities, _classes_without_voxels):
        problems += inspect(manifest, facts)
    return [*problems, *judge_manifest(manifest)]


def judge_manifest(manifest: Manifest) -> list[Problem]:
    """Problems that the table alone shows: patients in two splits, classes that nothing can learn."""
    return [*_groups(manifest), *_annotations(manifest)]


def possible_twins(manifest: Manifest, facts: Sequence[CaseFacts]) -> list[Case]:
    """Cases whose fingerprint is also that of another case."""
    count: dict[str, int] = {}
    for found in facts:
        count[found.fingerprint] = count.get(found.fingerprint, 0) + 1
    pairs = zip(manifest.cases, facts, strict=True)
    return [case for case, found in pairs if found.fingerprint and count[found.fingerprint] > 1]


def twins(manifest: Manifest, digests: Mapping[str, str]) -> list[list[Case]]:
    """Cases with the same image, in the order of the manifest."""
    by_digest: dict[str, list[Case]] = {}
    for case in manifest.cases:
        if digest := digests.get(case.id, ""):
            by_digest.setdefault(digest, []).append(case)
    return [cases for cases in by_digest.values() if len(cases) > 1]


def _duplicates(manifest: Manifest, digests: Mapping[str, str]) -> Iterator[Problem]:
    for first, *others in twins(manifest, digests):
        for other in others:
            what = f"the image is the same as that of case '{first.id}'"
            remedy = "remove one of them, or give both the same group and split"
            if other.split != first.split and first.split and other.split:
                what += f": one is in {first.split}, the other in {other.split}"
                yield of_image("error", "duplicate-across-splits", other, what, remedy)
            elif other.group != first.group:
                yield of_image("warning", "duplicate", other, what, remedy)


_SAME_CHANNELS = "give every case the same channels, in order; '-' stands for one that was not taken"


def _channels(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    counts = [found.channels for found in facts if found.channels]
    usual = max(sorted(set(counts)), key=counts.count, default=0)
    for case, found in zip(manifest.cases, facts, strict=True):
        if found.channels not in (0, usual):
            what = f"the case has {found.channels} images, most cases have {usual}"
            yield of_image(
                "error",
                "other-channels",
                case,
                what,
                _SAME_CHANNELS,
            )
    for number in never_taken(manifest):
        what = f"no training case has image {number}"
        remedy = "take its place out of the column 'images' in every case, or add a case that has it"
        yield of_cohort("error", "channel-never-taken", what, remedy)


def _by_data_set(
    manifest: Manifest, facts: Sequence[CaseFacts], known: Callable[[CaseFacts], bool]
) -> Iterator[tuple[str, list[tuple[Case, CaseFacts]]]]:
    pairs = [pair for pair in zip(manifest.cases, facts, strict=True) if known(pair[1])]
    for data_set in manifest.data_sets:
        if members := [pair for pair in pairs if pair[0].data_set == data_set]:
            yield data_set, members


def _spacings(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    for data_set, members in _by_data_set(manifest, facts, lambda found: found.spacing_mm is not None):
        spacings = np.array([found.spacing_mm for _, found in members])
        usual = np.median(spacings, axis=0)
        for (case, _), spacing in zip(members, spacings, strict=True):
            if bool((np.maximum(spacing / usual, usual / spacing) > SPACING_RATIO).any()):
                what = f"voxel size {size_text(spacing)}, but {size_text(usual)} is usual in data set '{data_set}'"
                remedy = "compare the header with the original scan"
                yield of_image("warning", "unusual-spacing", case, what, remedy)


def _intensities(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    """Scans whose body is far darker, brighter or of other contrast than those of their data set."""
    for data_set, members in _by_data_set(manifest, facts, lambda found: found.intensities is not None):
        if len(members) < ENOUGH_SCANS:
            continue
        values = np.array(
            [(found.low, found.median, found.high) for _, facts in members if (found := facts.intensities)]
        )
        usual = np.median(values, axis=0)
        spread = _TO_STANDARD_DEVIATION * np.median(np.abs(values - usual), axis=0)
        allowed = np.maximum(FAR * spread, _tolerance(manifest.data_sets[data_set].intensity, usual))
        for (case, _), found in zip(members, values, strict=True):
            if bool((np.abs(found - usual) > allowed).any()):
                what = (
                    f"unusual intensities: {_quantiles(found)} in the body (5, 50, 95 %), "
                    f"but {_quantiles(usual)} is usual in data set '{data_set}'"
                )
                remedy = "look at the scan: another unit, another sequence, or another part of the body?"
                yield of_image("warning", "unusual-intensities", case, what, remedy)


def _tolerance(intensity: Intensity, usual: Iterable[float]) -> float:
    low, _, high = usual
    return CT_TOLERANCE_HU if intensity == "ct" else TOLERANCE * (high - low)


def _quantiles(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _classes_without_voxels(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    present = frozenset[str]().union(*(found.present for found in facts))
    # Labels that could not be read are errors of their own, and tell nothing about a class.
    counted = frozenset[str]().union(*(found.voxels for found in facts))
    for structure in manifest.label_space.structures:
        if structure not in present and structure in counted:
            what = f"class '{structure}' is said to be annotated, but no case has a voxel of it"
            remedy = "correct the values of the class in dataset.toml, or remove the class"
            yield of_cohort("warning", "class-without-voxels", what, remedy)


def _groups(manifest: Manifest) -> Iterator[Problem]:
    taking_part = tuple(case for case in manifest.cases if case.split)
    for name, cases in groups_of(taking_part).items():
        if len(splits := sorted({case.split for case in cases})) > 1:
            what = f"group '{name}' is in {' and '.join(splits)}: {some(case.id for case in cases)}"
            yield of_cohort("error", "group-across-splits", what, "put all cases of a patient into one split")


def _annotations(manifest: Manifest) -> Iterator[Problem]:
    train = manifest.split("train")
    if not train:
        what = "no case is in the split 'train'"
        yield of_cohort("warning", "no-training-case", what, "fill the column 'split'")
    elif not manifest.label_space.structures:
        where = ", ".join(manifest.data_sets)
        what = f"nothing is labelled in {where}, and no structure is named: alone it cannot train"
        remedy = "predict it, or import it together with labelled scans"
        yield of_cohort("warning", "nothing-labelled", what, remedy)
    elif not any(case.annotated for case in train):
        what = "no training case is annotated: there is nothing to learn the classes from"
        remedy = "annotate some cases and name their classes in the column 'annotated'"
        yield of_cohort("error", "nothing-annotated", what, remedy)
    else:
        for structure in never_annotated(manifest):
            what = f"class '{structure}' is annotated in no training case"
            remedy = "annotate it in some training cases, or remove the class"
            yield of_cohort("error", "class-never-annotated", what, remedy)
