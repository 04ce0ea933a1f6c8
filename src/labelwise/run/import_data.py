"""`import_data`: from folders of scans to a manifest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import FILE_NAME as TABLE_NAME
from labelwise.cohort.data_set import Others, not_commercial
from labelwise.cohort.join import Sides, join
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, write_new_manifest
from labelwise.cohort.regions import with_regions
from labelwise.cohort.split import cut_groups, leave_data_set_out, split_cases
from labelwise.console import ShowProgress, silent
from labelwise.errors import ConfigError, did_you_mean, warn_about
from labelwise.formats.layout import Overlap
from labelwise.formats.stored import NOT_READ, UNREAD, is_unread
from labelwise.importers.evidence import FileNames, Reading, Undrawn, believed
from labelwise.importers.licences import licensed
from labelwise.importers.listing import files_below
from labelwise.importers.options import plan
from labelwise.quality import duplicates as duplicated

__all__ = ["import_data"]

logger = logging.getLogger("labelwise")


def import_data(
    folders: Mapping[str, Path | str] | Sequence[Path | str],
    output: Path | str,
    *,
    importer: str | None = None,
    annotated: Mapping[str, Iterable[str]] | Iterable[str] | None = None,
    sides: Sides = None,
    find_duplicates: bool = False,
    test_data_set: str | None = None,
    validation: int | float = 0,
    test: int | float = 0,
    seed: int = 0,
    others: Others | None = None,
    overlap: Overlap | None = None,
    undrawn: Undrawn = "unknown",
    file_names: FileNames | None = None,
    licence: Mapping[str, str] | str | None = None,
    region: Mapping[str, Sequence[str]] | None = None,
    normalised: Collection[str] | bool = False,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
    **options: Any,
) -> Manifest:
    """Describe one or several folders of scans by a manifest; no scan is copied or changed.

    Arguments
        folders           folders, or name -> folder; several are joined in one label space by what class names mean, a
                        single one keeps its names
        output          folder that receives manifest.csv and dataset.toml; another manifest there is not replaced
        importer        how the folders are laid out; found out from their contents if not given
        annotated       structures that the labelled cases of a data set are annotated for (per data set, or for all);
                        default: all classes of the data set
        sides           join or split, where one data set has left and right in one class and another apart; or a
                        choice by joint class, {"kidneys": "join"}; see `labelwise.cohort.join`
        find_duplicates     read all images once, report scans that are there twice, and make one group of each
        test_data_set     the data set that tests, while all others train
        validation, test    training patients to set aside: a number, or a fraction below 1
        others          background or ignore: what values of label files are that no class has; default: an error
        overlap         later or smaller: which structure counts where two of one file overlap; kept: each combination
                        that occurs is a class, and each structure that overlaps a region of them
        undrawn         unknown or absent: what a structure is that a label file lists, but of which nothing was
                        drawn; unknown: not annotated in that case
        file_names      ignored: the names that label files give to their values are wrong, their numbers right
        licence         terms of the scans and labels (per data set, or of all), for the card of every model that learns
                        from them; default: what a description beside the scans says, or what is known of a public
                        data set
        region          names for several classes together, {"whole tumour": ["edema", "core"]}; where a data set has a
                        class of such a name, it is annotated for the region as one
        normalised      whoever made the files has normalised the intensities, so that they are taken as they are: of
                        all data sets (True), or of those that are named
        workers, engine     where images are read, for `find_duplicates`
        options         of the importers, e.g. classes={"liver": 1}, modality="ct", group=r"patient\\d+"; for one
                        data set of several: {"kits.tumour": "class"}

    Errors
        DataError, ConfigError      nothing is written if one data set cannot be imported
    """
    named = _named(folders)
    if options.get("modality") == "normalised":  # as it was stated once
        logger.warning(
            "'normalised' says nothing of the modality: taken for --modality other --normalised all"
        )
        options["modality"], normalised = "other", True
    for option, given in (
        ("--annotated", annotated if isinstance(annotated, Mapping) else ()),
        ("--licence", licence if isinstance(licence, Mapping) else ()),
        ("--normalised", () if isinstance(normalised, bool) else normalised),
    ):
        if unknown := set(given) - set(named):
            raise _unknown_data_set(option, sorted(unknown)[0], named)
    if test_data_set is not None and test_data_set not in named:
        raise _unknown_data_set("--test-data-set", test_data_set, named)
    if test_data_set is not None and test:
        raise ConfigError(
            "the test data set decides which cases test", do="leave out --test or --test-data-set"
        )
    if importer is None:
        _refuse_manifests(named, Path(output))
    reading = Reading(others, overlap, undrawn, file_names)
    parts: dict[str, list[Manifest]] = {}
    for job in plan(named, importer, options):
        known = annotated.get(job.name) if isinstance(annotated, Mapping) else annotated
        stated = licence.get(job.name) if isinstance(licence, Mapping) else licence
        found = [licensed(believed(part, reading), job.importer, stated) for part in job.scan()]
        if normalised is True or (normalised and job.name in normalised):
            found = [_normalised(part) for part in found]
        parts[job.name] = found if known is None else [_restricted(part, known) for part in found]
        if job.folder.is_dir():
            warn_about(NOT_READ, [file.name for file in files_below(job.folder, UNREAD) if is_unread(file)])
    manifest = join(_distinct(parts), sides)
    if region:
        manifest = with_regions(manifest, region)
    if find_duplicates:
        duplicates, unread = duplicated.find_duplicates(
            manifest, engine=engine, workers=workers, progress=progress
        )
        warn_about("images that cannot be read are not compared", unread)
        warn_about(
            "equal images form one group", [" = ".join(case.id for case in cases) for cases in duplicates]
        )
        manifest = duplicated.in_one_group(manifest, duplicates)
    if test_data_set is not None:
        manifest = leave_data_set_out(
            manifest, {name for part in parts[test_data_set] for name in part.data_sets}
        )
    if validation or test:
        manifest = split_cases(manifest, validation=validation, test=test, seed=seed)
    cut = [f"{group}: {' and '.join(splits)}" for group, splits in cut_groups(manifest).items()]
    warn_about("groups with cases in several splits", cut)
    warn_about("data sets whose terms forbid commercial use", not_commercial(manifest.data_sets.values()))
    write_new_manifest(manifest, Path(output))
    return manifest


def _distinct(parts: Mapping[str, Sequence[Manifest]]) -> list[Manifest]:
    """The parts, none of which has the name of a data set that is in another one too."""
    owner: dict[str, str] = {}
    for name, found in parts.items():
        for data_set in (data_set for part in found for data_set in part.data_sets):
            if owner.setdefault(data_set, name) != name:
                raise ConfigError(
                    f"the importer of '{owner[data_set]}' makes a data set of the name '{data_set}' too",
                    do=f"import '{name}' under another name",
                )
    return [part for found in parts.values() for part in found]


def _refuse_manifests(named: Mapping[str, Path | str], output: Path) -> None:
    """A folder that a manifest describes already is no folder to be guessed at; writing it again is."""
    for folder in map(Path, named.values()):
        if (folder / MANIFEST_NAME).is_file() and (folder / TABLE_NAME).is_file() and not _is(output, folder):
            raise ConfigError(
                "this folder is described already: a manifest lies in it",
                file=folder / MANIFEST_NAME,
                do=f"use it as it is, as in: labelwise check {folder}; or name the importer that reads the folder "
                "anew, as in: --importer folders",
            )


def _is(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def _unknown_data_set(option: str, name: str, named: Mapping[str, Path | str]) -> ConfigError:
    return ConfigError(
        f"{option} names no data set '{name}'{did_you_mean(name, named)}",
        expected=", ".join(filter(None, named)) or "no name, because there is one data set without a name",
    )


def _named(folders: Mapping[str, Path | str] | Sequence[Path | str]) -> Mapping[str, Path | str]:
    """Name -> folder; a single folder keeps the name that its importer gives it, written as ""."""
    if not folders:
        raise ConfigError("nothing to import", do="name at least one folder")
    if isinstance(folders, Mapping):
        return folders
    if len(folders) == 1:
        return {"": folders[0]}
    named = {Path(folder).resolve().name: folder for folder in folders}
    if len(named) < len(folders):
        raise ConfigError(
            "two data sets have the same folder name", do="name them: first=FOLDER second=FOLDER"
        )
    return named


def _normalised(manifest: Manifest) -> Manifest:
    tables = {name: replace(table, normalised=True) for name, table in manifest.data_sets.items()}
    return replace(manifest, data_sets=tables)


def _restricted(manifest: Manifest, annotated: Iterable[str]) -> Manifest:
    """Labelled cases are believed only for these structures, which may have any spelling of their name."""
    names = {canonical(name): name for name in manifest.label_space.structures}
    names |= {name: name for name in manifest.label_space.structures}
    structures = frozenset(
        names.get(structure, names.get(canonical(structure), structure)) for structure in annotated
    )
    for structure in structures:
        manifest.label_space.index(structure)
    return manifest.replace_cases(
        replace(case, annotated=case.annotated & structures) for case in manifest.cases
    )
