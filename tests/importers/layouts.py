"""Trees of files as data sets have them; importers look at names, so most files may stay empty."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from labelwise.cohort.manifest import Manifest, read_manifest, write_manifest
from labelwise.types import Case


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def add_junk(folder: Path, *names: str) -> None:
    """What systems leave behind: AppleDouble twins of files, and their like."""
    for name in names:
        path = Path(name)
        touch(folder, str(path.with_name(f"._{path.name}")), f"__MACOSX/{name}")
    touch(folder, ".DS_Store")


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def ids(cases: Iterable[Case]) -> list[str]:
    return [case.id for case in cases]


def sizes(manifest: Manifest) -> tuple[int, int, int, int]:
    """Number of cases that train, validate, test and take no part."""
    train, validation, test, none = (
        len(manifest.split(name)) for name in ("train", "validation", "test", "")
    )
    return train, validation, test, none


def reads_back(manifest: Manifest, folder: Path) -> bool:
    return read_manifest(write_manifest(manifest, folder)) == manifest
