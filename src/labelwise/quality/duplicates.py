"""Scans that are in a cohort more than once, within a data set or in several: equal voxels, whatever their names.

Public data sets contain each other, and no header says so. Cases with the same image become one group, so that no
split cuts through them. A scan that was cropped, resampled or mirrored on the way is another scan to this search.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from labelwise.cohort.manifest import Manifest
from labelwise.console import ShowProgress, silent
from labelwise.engine import run_jobs
from labelwise.quality.check_case import image_digest
from labelwise.quality.check_cohort import twins
from labelwise.types import Case


def find_duplicates(
    manifest: Manifest,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: ShowProgress = silent,
) -> tuple[list[list[Case]], list[str]]:
    """Sets of cases whose images are equal voxel by voxel, and the ids of cases whose image cannot be read.

    Every image is read once, in RAS+ order as training reads it.

    Parameters
        engine      where images are read, see `labelwise.engine`
        workers     number of processes; None uses all CPUs
        progress    told after each image
    """
    single = [manifest.replace_cases([case]) for case in manifest.cases]
    digests: dict[str, str] = {}
    for done, outcome in enumerate(run_jobs(image_digest, single, engine=engine, workers=workers), start=1):
        case, digest = outcome.result or (outcome.item.cases[0].id, "")
        digests[case] = digest
        progress("compare", done, len(single))
    return twins(manifest, digests), [case.id for case in manifest.cases if not digests[case.id]]


def in_one_group(manifest: Manifest, duplicates: Iterable[Iterable[Case]]) -> Manifest:
    """The manifest in which equal cases, and with them all cases of their groups, form one group."""
    first: dict[str, str] = {}  # group -> the group with which it was united

    def root(group: str) -> str:
        while group in first:
            group = first[group]
        return group

    order = {case.group: place for place, case in reversed(list(enumerate(manifest.cases)))}
    for cases in duplicates:
        groups = sorted({root(case.group) for case in cases}, key=order.__getitem__)
        first |= dict.fromkeys(groups[1:], groups[0])
    return manifest.replace_cases(replace(case, group=root(case.group)) for case in manifest.cases)
