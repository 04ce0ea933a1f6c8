"""Every importer has a page that names what it does, and gives classes by the names that the package uses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from layouts import touch

from labelwise.anatomy import canonical, find
from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.importers import (
    IMPORTERS,
    abdomenct1k,
    acdc,
    amos22,
    btcv,
    flare22,
    kits,
    la2018,
    lits,
    load,
    msd,
    nih_pancreas,
    totalsegmentator,
    word,
)
from labelwise.importers.options import options_of
from labelwise.types import BACKGROUND

PAGES = Path(__file__).parents[2] / "docs" / "data"
HEADINGS = ["On disk", "Classes", "What is handled", "Options", "Splits and licence"]
GENERAL = {"bids", "nnunet", "decathlon", "csv", "mixed", "dicom", "folders"}  # classes are the user's
CLASSES: dict[str, Iterable[str]] = {
    "lits": (lits.STRUCTURE, lits.TUMOUR),
    "msd": [name for task in msd.TASKS for name in task.classes],
    "kits": (kits.STRUCTURE, kits.TUMOUR, kits.CYST),
    "nih_pancreas": nih_pancreas.VALUES.values(),
    "amos22": amos22.VALUES.values(),
    "word": word.VALUES.values(),
    "btcv": btcv.VALUES.values(),
    "flare22": flare22.VALUES.values(),
    "abdomenct1k": [*abdomenct1k.VALUES.values(), *abdomenct1k.VALUES_OF_12.values()],
    "la2018": [*la2018.VALUES.values(), *la2018.RAW_VALUES.values()],
    "acdc": acdc.VALUES.values(),
}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_importer_has_a_page_with_the_same_headings(name: str):
    assert re.findall(r"^## (.+)$", page(name), flags=re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("name", IMPORTERS)
def test_every_page_has_the_command_and_names_every_option(name: str):
    text = page(name)
    commands = re.findall(r"^ *(labelwise import .+)$", text, flags=re.MULTILINE)
    assert commands
    options = options_of(load(name).scan)
    for command in commands:
        settings = re.findall(r"--set '?(?:\w+\.)?(\w+)=", command)
        assert [option for option in settings if option not in options] == []
    part = text.split("## Options")[1].split("\n## ")[0]
    assert [option for option in options if not re.search(rf"\b{option}\b", part)] == []


def test_the_index_has_a_row_for_every_importer_and_every_page():
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|", index, flags=re.MULTILINE)
    assert {first == second for first, second in rows} == {True}
    assert sorted(name for name, _ in rows) == sorted(IMPORTERS)
    assert {file.stem for file in PAGES.glob("*.md")} - {"README"} == set(IMPORTERS)


def test_public_data_sets_are_those_with_classes_of_their_own():
    assert set(CLASSES) | GENERAL | {"totalsegmentator"} == set(IMPORTERS)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_public_data_sets_have_canonical_names(name: str):
    names = set(CLASSES[name]) - {BACKGROUND, IGNORE_NAME}
    assert {one: canonical(one) for one in names} == {one: one for one in names}
    assert [one for one in names if find(one) is None] == []


def test_classes_of_totalsegmentator_have_canonical_names(tmp_path: Path):
    masks = [f"s1/segmentations/{name}.nii.gz" for name in totalsegmentator.STRUCTURES]
    touch(tmp_path, "s1/ct.nii.gz", *masks)
    structures = totalsegmentator.scan(tmp_path).label_space.structures
    assert len(structures) == 117
    assert [name for name in structures if canonical(name) != name or find(name) is None] == []
