"""Make annotation scarce on purpose: the same scans, but fewer of their labels may be used.

Label files are never rewritten: what is hidden is erased when a case is read (`manifest.read_case_labels`).
Only the column `annotated` of training cases changes. Validation and test stay as they are.

    keep_labelled        n patients keep their labels, all others become unlabelled
    one_structure_per_case   every patient keeps one structure, each structure equally often (LiTS + KiTS + ...)
    structures_per_case      every patient keeps k structures, drawn at random (WORD protocol) or equally often
    equal_cost           as many structure masks as structures_per_case with k, but of completely labelled patients
    by_data_set            every data set keeps its own structures (as if each site had annotated for its own purpose)

The published settings `ltuda_toy` and `ltuda_union` also decide the splits: see `labelwise.cohort.published`.

The published WORD protocol draws among the structures that have voxels in a scan; here the draw is among the
structures that were annotated in it, present or not, because a manifest holds no pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labelwise.cohort.coverage import annotation_cost, never_annotated
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.published import PUBLISHED
from labelwise.cohort.split import groups_of
from labelwise.errors import ConfigError, did_you_mean
from labelwise.settings import OLDER_NAMES, build_settings
from labelwise.types import Case

logger = logging.getLogger("labelwise")

_STRICT = ConfigDict(extra="forbid")
Unit = Literal["group", "case"]
Kept = dict[str, frozenset[str]]  # case id -> structures that stay annotated


class Mode(Protocol):
    """A way to make labels scarce; the settings are the fields of the dataclass."""

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        ...


@dataclass(frozen=True, config=_STRICT)
class KeepLabelled:
    """The first n, or n drawn at random, keep their labels."""

    n: int = Field(ge=0)  # number of groups (or cases) that stay labelled
    order: Literal["list", "random"] = "list"  # list: the first n of the manifest, as the papers do
    unit: Unit = "group"  # group: the frames of a patient stay together
    seed: int = 0

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        units = _annotated_units(manifest, self.unit)
        if self.n > len(units):
            raise ConfigError(
                f"cannot keep {self.n} labelled: there are not so many annotated training {self.unit}s",
                expected=f"n = 0 to {len(units)}",
            )
        names = _shuffled(units, np.random.default_rng(self.seed)) if self.order == "random" else list(units)
        kept = {case.id: case.annotated for name in names[: self.n] for case in units[name]}
        return _annotated_only(manifest, kept)


@dataclass(frozen=True, config=_STRICT)
class StructuresPerCase:
    """Every group (or case) keeps k structures of those annotated in it; all of them if it has fewer."""

    k: int = Field(ge=1)  # number of structures that stay annotated
    draw: Literal["per_case", "balanced"] = (
        "balanced"  # balanced: each structure is kept equally often, plus minus one
    )
    unit: Unit = "group"  # group: the frames of a patient keep the same structures
    seed: int = 0

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        structures = manifest.label_space.structures
        _check_k(self.k, structures)
        units = _annotated_units(manifest, self.unit)
        generator = np.random.default_rng(self.seed)
        names = _shuffled(units, generator)
        offers = {name: frozenset[str]().union(*(case.annotated for case in units[name])) for name in names}
        if self.draw == "balanced":
            names.sort(key=lambda name: len(offers[name]))  # who has little choice chooses first
        count = dict.fromkeys(structures, 0)
        kept: Kept = {}
        for name in names:
            drawn = [
                structures[i] for i in generator.permutation(len(structures)) if structures[i] in offers[name]
            ]
            if self.draw == "balanced":
                drawn.sort(key=count.__getitem__)  # stable: equals stay in drawn order
            for structure in drawn[: self.k]:
                count[structure] += 1
            kept |= {case.id: case.annotated & frozenset(drawn[: self.k]) for case in units[name]}
        if fewer := sorted(name for name, structures_kept in kept.items() if len(structures_kept) < self.k):
            more = ", ..." if len(fewer) > 5 else ""
            logger.warning("%d of %d annotated cases keep fewer than %d structures, because they have no more: %s%s",
                len(fewer), len(kept), self.k, ", ".join(fewer[:5]), more)  # fmt: skip
        scarce = _annotated_only(manifest, kept)
        if lost := [
            structure for structure in never_annotated(scarce) if structure not in never_annotated(manifest)
        ]:
            raise ConfigError(
                f"no training case would keep {', '.join(lost)}",
                found=f"{len(names)} annotated {self.unit}s, k = {self.k}, draw = '{self.draw}'",
                do="keep more structures (k), draw = 'balanced', or another seed",
            )
        return scarce


@dataclass(frozen=True, config=_STRICT)
class OneStructurePerCase:
    """Every group (or case) keeps one structure, and each structure is kept equally often, plus minus one."""

    unit: Unit = "group"
    seed: int = 0

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        return StructuresPerCase(k=1, draw="balanced", unit=self.unit, seed=self.seed).apply(manifest)


@dataclass(frozen=True, config=_STRICT)
class EqualCost:
    """n groups keep all structures, the others none: about as many structure masks as k structures in every group.

    n = N k / (C - 1) of the N annotated training groups, rounded to the nearest whole number, a half upwards.
    """

    k: int = Field(ge=1)  # structures per case of the partially labelled partner
    order: Literal["list", "random"] = "list"
    unit: Unit = "group"
    seed: int = 0

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        structures = manifest.label_space.structures
        units = _annotated_units(manifest, self.unit)
        members = [case for cases in units.values() for case in cases]
        if unlabelled := [case.id for case in members if len(case.annotated) < len(structures)]:
            raise ConfigError(
                "equal cost is counted from completely annotated training cases",
                found=f"{len(unlabelled)} are annotated in part: {', '.join(unlabelled[:5])}",
                do="begin with the complete manifest, not with a scarce one",
            )
        _check_k(self.k, structures)
        n = (2 * len(units) * self.k + len(structures)) // (2 * len(structures))
        if not n:
            raise ConfigError(
                f"cannot keep even one complete {self.unit} at the cost of {self.k} structures per case",
                found=f"{len(units)} annotated {self.unit}s of {len(structures)} structures",
                do="raise k",
            )
        scarce = KeepLabelled(n=n, order=self.order, unit=self.unit, seed=self.seed).apply(manifest)
        logger.info(
            "%d complete %ss cost %d masks; structures_per_case with k = %d costs %d",
            n, self.unit, annotation_cost(scarce), self.k, self.k * len(members),
        )  # fmt: skip
        return scarce


@dataclass(frozen=True, config=_STRICT)
class ByDataSet:
    """The named data sets keep the given structures; data sets that are not named keep all of theirs."""

    keep: dict[str, list[str]]  # data set -> structures

    def apply(self, manifest: Manifest) -> Manifest:
        """The scarce manifest."""
        for data_set, structures in self.keep.items():
            if data_set not in manifest.data_sets:
                raise ConfigError(
                    f"unknown data set '{data_set}'{did_you_mean(data_set, manifest.data_sets)}",
                    expected=", ".join(manifest.data_sets),
                    code="unknown-name",
                )
            there = frozenset().union(
                *(case.annotated for case in manifest.split("train") if case.data_set == data_set)
            )
            for structure in structures:
                manifest.label_space.index(structure)
                if structure not in there:
                    raise ConfigError(
                        f"data set '{data_set}' cannot keep '{structure}': none of its training cases annotates it",
                        expected=", ".join(sorted(there))
                        or "nothing: the data set has no annotated training case",
                        code="nothing-annotated",
                    )
        kept = {
            case.id: case.annotated & frozenset(self.keep.get(case.data_set, case.annotated))
            for case in manifest.split("train")
        }
        return _annotated_only(manifest, kept)


MODES: Mapping[str, type[Mode]] = {
    "keep_labelled": KeepLabelled,
    "one_structure_per_case": OneStructurePerCase,
    "structures_per_case": StructuresPerCase,
    "equal_cost": EqualCost,
    "by_data_set": ByDataSet,
    **PUBLISHED,
}


def hide(manifest: Manifest, mode: str | Mode, /, **settings: Any) -> Manifest:
    """A manifest in which training cases say less than their label files.

    The result depends on the seed and on the manifest, never on the order of dictionaries; random draws do
    not depend on the order of the cases either.

    Errors
        ConfigError   unknown mode, setting, data set or class; more is to be kept than there is; no training case
                      would keep a structure that is drawn by chance
        DataError     a published list names cases that the manifest does not have

    Example
        ``hide(manifest, "keep_labelled", n=8)`` keeps the labels of the first 8 scans of the list;
        ``hide(manifest, "structures_per_case", k=2, seed=1)`` those of two structures in each scan.
    """
    chosen = _settings(mode, settings) if isinstance(mode, str) else mode
    return chosen.apply(manifest)


def _settings(mode: str, settings: dict[str, Any]) -> Mode:
    mode = OLDER_NAMES.get(mode, mode)
    if mode not in MODES:
        raise ConfigError(
            f"unknown way to hide labels '{mode}'{did_you_mean(mode, MODES)}",
            expected=", ".join(MODES),
            code="unknown-name",
        )
    return build_settings(MODES[mode], settings, f"hide {mode}")


def _check_k(k: int, structures: tuple[str, ...]) -> None:
    if k > len(structures):
        raise ConfigError(f"cannot keep {k} structures per case", expected=f"k = 1 to {len(structures)}")


def _annotated_only(manifest: Manifest, kept: Kept) -> Manifest:
    """Training cases keep these structures, and nothing if they are not named."""
    return manifest.replace_cases(
        replace(case, annotated=kept.get(case.id, frozenset())) if case.split == "train" else case
        for case in manifest.cases
    )


def _annotated_units(manifest: Manifest, unit: Unit) -> dict[str, tuple[Case, ...]]:
    cases = tuple(case for case in manifest.split("train") if case.annotated)
    return groups_of(cases) if unit == "group" else {case.id: (case,) for case in cases}


def _shuffled(units: Mapping[str, object], generator: np.random.Generator) -> list[str]:
    names = sorted(units)
    return [names[i] for i in generator.permutation(len(names))]
