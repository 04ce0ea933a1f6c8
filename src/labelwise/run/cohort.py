"""`import_data`, `check`, `simulate`: from folders to a manifest, and from a manifest to another one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelwise.console import Progress, silent
from labelwise.data import check as checking
from labelwise.data import importers
from labelwise.data.coverage import Coverage, coverage, never_annotated
from labelwise.data.hide import hide
from labelwise.data.manifest import MANIFEST_NAME, Manifest, merge, read_manifest, write_manifest
from labelwise.data.published import PUBLISHED
from labelwise.data.split import hold_out, split_cases
from labelwise.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger("labelwise")

__all__ = ["CheckReport", "check", "import_data", "simulate"]


def import_data(
    sources: Mapping[str, Path | str] | Sequence[Path | str],
    output: Path | str,
    *,
    importer: str | None = None,
    annotated: Mapping[str, Iterable[str]] | Iterable[str] | None = None,
    validation: int | float = 0,
    test: int | float = 0,
    seed: int = 0,
    **options: Any,
) -> Manifest:
    """Describe one or several folders of scans by a manifest; no scan is copied or changed.

    Arguments
        sources         folders, or name -> folder; several are joined in one label space by class name
        output          folder that receives manifest.csv and dataset.toml; another manifest there is not replaced
        importer        how the folders are laid out; found out from their contents if not given
        annotated       organs that the labelled cases of a source are annotated for (per source, or for all);
                        default: all classes of the source
        validation, test    training patients to set aside: a number, or a fraction below 1
        options         of the importer, e.g. classes={"liver": 1}, modality="ct", group=r"patient\\d+"

    Errors
        DataError, ConfigError      nothing is written if one source cannot be imported
    """
    named = _named(sources)
    parts = []
    for name, folder in named.items():
        part = _scan(Path(folder), name, importer, options)
        known = annotated.get(name) if isinstance(annotated, Mapping) else annotated
        parts.append(part if known is None else _restricted(part, known))
    if isinstance(annotated, Mapping) and (unknown := set(annotated) - set(named)):
        name = sorted(unknown)[0]
        raise ConfigError(
            f"--annotated names no source '{name}'{did_you_mean(name, named)}",
            expected=", ".join(named) or "organs only, because there is one source without a name",
        )
    manifest = merge(parts) if len(parts) > 1 else parts[0]
    if validation or test:
        manifest = split_cases(manifest, validation=validation, test=test, seed=seed)
    _write(manifest, Path(output))
    return manifest


def _write(manifest: Manifest, folder: Path) -> None:
    """Never over another manifest: people correct theirs by hand, and a simulation must not hide its own source."""
    if (folder / MANIFEST_NAME).exists() and not _holds(folder, manifest):
        raise ConfigError(
            "the output folder holds another manifest",
            file=folder / MANIFEST_NAME,
            do="choose another folder; or, if nobody needs that manifest any more, delete it",
        )
    write_manifest(manifest, folder)


def _holds(folder: Path, manifest: Manifest) -> bool:
    try:
        return read_manifest(folder) == manifest
    except DataError:  # damaged, but not ours to throw away
        return False


def _named(sources: Mapping[str, Path | str] | Sequence[Path | str]) -> Mapping[str, Path | str]:
    """Name -> folder; a single folder keeps the name that its importer gives it, written as ""."""
    if not sources:
        raise ConfigError("nothing to import", do="name at least one folder")
    if isinstance(sources, Mapping):
        return sources
    if len(sources) == 1:
        return {"": sources[0]}
    named = {Path(folder).resolve().name: folder for folder in sources}
    if len(named) < len(sources):
        raise ConfigError("two sources have the same folder name", do="name them: first=FOLDER second=FOLDER")
    return named


def _scan(folder: Path, name: str, importer: str | None, options: Mapping[str, Any]) -> Manifest:
    chosen = importer or importers.detect(folder)
    scan = importers.load(chosen).scan
    accepted = set(inspect.signature(scan).parameters) - {"folder", "source", "annotated"}
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in accepted:
            raise ConfigError(
                f"the importer '{chosen}' has no option '{key}'{did_you_mean(key, accepted)}",
                file=folder,
                expected=", ".join(sorted(accepted)) or "no options",
            )
    manifest: Manifest = scan(folder, **({"source": name} if name else {}), **given)
    return manifest


def _restricted(manifest: Manifest, annotated: Iterable[str]) -> Manifest:
    """Labelled cases are believed only for these organs."""
    organs = frozenset(annotated)
    for organ in organs:
        manifest.label_space.index(organ)
    return manifest.replace_cases(replace(case, annotated=case.annotated & organs) for case in manifest.cases)


@dataclass(frozen=True)
class CheckReport:
    """Every problem of a cohort, and which source annotates what."""

    problems: tuple[checking.Problem, ...]
    coverage: Coverage

    @property
    def num_errors(self) -> int:
        """Problems that training would stumble over."""
        return sum(problem.severity == "error" for problem in self.problems)

    def to_text(self) -> str:
        """The coverage matrix, then the problems, errors first."""
        ordered = sorted(self.problems, key=lambda problem: problem.severity)
        count = f"{self.num_errors} errors, {len(self.problems) - self.num_errors} warnings"
        return "\n\n".join([self.coverage.text(), *(str(problem) for problem in ordered), count])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "errors": self.num_errors,
            "problems": [problem.to_json() for problem in self.problems],
            "coverage": self.coverage.to_json(),
        }


def check(
    data: Path | str, *, workers: int | None = None, engine: str = "local", progress: Progress = silent
) -> CheckReport:
    """Read every case of a manifest once and list every problem, with severity and remedy."""
    manifest = read_manifest(data)
    problems = checking.check(
        manifest, workers=workers, engine=engine, progress=lambda done, total: progress("check", done, total)
    )
    return CheckReport(tuple(problems), coverage(manifest))


def simulate(
    data: Path | str, output: Path | str, mode: str, /, *, held_out: int = 0, **settings: Any
) -> Manifest:
    """Make labels scarce: the same scans, fewer annotations. Label files are never rewritten.

    Arguments
        data        the manifest to begin with
        output      folder for the new manifest; another manifest there is not replaced
        mode        keep_labelled, one_organ_per_case, organs_per_case, equal_cost or by_source (see
                    `labelwise.data.hide`), ltuda_toy or ltuda_union (see `labelwise.data.published`)
        held_out    training patients (the last of the list) that become validation before labels are hidden
        settings    of the mode, e.g. n=8, or k=2, seed=1

    Errors
        ConfigError     a setting is wrong, or patients are to be held out from a published list
        DataError       a published list names cases that are not there
    """
    if held_out and mode in PUBLISHED:
        raise ConfigError(f"the lists of {mode} decide the splits", do="set 'validation' of the mode instead")
    manifest = hold_out(read_manifest(data), held_out)
    manifest = hide(manifest, mode, **settings)
    if missing := never_annotated(manifest):
        logger.warning("no training case annotates %s: training will refuse to begin", ", ".join(missing))
    _write(manifest, Path(output))
    return manifest
