"""`import` of several data sets: options for each, sides, duplicates, and one data set left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import ids
from union_trees import make_kits, make_lits, make_nih, make_spleen

from labelwise import run
from labelwise.cohort.manifest import read_manifest
from labelwise.errors import ConfigError
from labelwise.importers import IMPORTERS
from tiny_cohort import write_map, write_scan


@pytest.fixture
def four(tmp_path: Path) -> dict[str, Path]:
    """Four data sets with three cases each."""
    return {
        "lits": make_lits(tmp_path / "in/lits", range(3)),
        "msd_spleen": make_spleen(tmp_path / "in/msd_spleen", (2, 3, 6)),
        "kits": make_kits(tmp_path / "in/kits", range(1, 4)),
        "nih": make_nih(tmp_path / "in/nih", range(1, 4)),
    }


def named(folders: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in folders.items()]


def plain(folder: Path, *names: str, values: tuple[int, ...] = (1, 2), seed: int = 0) -> Path:
    for number, name in enumerate(names):
        write_scan(folder / "images" / f"{name}.nii.gz", seed=seed + number)
        write_map(folder / "labels" / f"{name}.nii.gz", *values)
    return folder


# options


def test_options_reach_every_importer_that_has_them_or_one_data_set(four, command, tmp_path: Path):
    words = ("--set", "tumour=ignore", "--set", "kits.tumour=class", "--set", "nih.flip=headers")
    lits_and_kits = {name: four[name] for name in ("lits", "kits", "nih")}
    assert command("import", *named(lits_and_kits), "-o", tmp_path / "out", *words).code == 0
    data_sets = read_manifest(tmp_path / "out").data_sets
    assert data_sets["lits"].values[2] == "ignore"
    assert data_sets["kits"].values[2] == "kidney tumour"
    assert data_sets["kits_first_release"].values[2] == "kidney tumour"
    assert list(data_sets) == ["lits", "kits", "kits_first_release", "nih"]


def test_options_in_python_are_the_same(four, tmp_path: Path):
    manifest = run.import_data(four, tmp_path / "out", **{"lits.tumour": "background", "kits.cyst": "class"})
    assert manifest.data_sets["lits"].values[2] == "background"
    assert "kidney cyst" in manifest.label_space.structures


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tumor=class"], "the importer 'lits' or 'msd' or 'kits' or 'nih_pancreas' has no option 'tumor'"),
        (["tumor=class"], "did you mean 'tumour'"),
        (["nih.tumour=class"], "the importer 'nih_pancreas' has no option 'tumour'"),
        (["kist.tumour=class"], "an option is for the unknown data set 'kist'; did you mean 'kits'"),
        (["lits.tumour=cyst"], "tumour = 'cyst' is no choice"),
        (["lits.tumour=3"], "the option 'tumour' of the importer 'lits' is wrong"),
        (["nih.labels=[1]"], "the option 'labels' of the importer 'nih_pancreas' is wrong"),
        (["test=3"], "use --test"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(four, command, tmp_path: Path, words, message):
    settings = [word for text in words for word in ("--set", text)]
    answer = command("import", *named(four), "-o", tmp_path / "out", *settings)
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "out").exists()


def test_one_data_set_without_a_name_takes_options_without_a_data_set(four, command, tmp_path: Path):
    words = ("import", four["kits"], "-o", tmp_path / "out", "--set")
    answer = command(*words, "kits.tumour=class")
    assert (answer.code, "one data set without a name" in answer.err) == (2, True)
    assert command(*words, "tumour=class").code == 0
    assert read_manifest(tmp_path / "out").label_space.structures == ("kidneys", "kidney tumour")


def test_a_layout_is_set_by_a_table(command, tmp_path: Path):
    folder = plain(tmp_path / "site", "a")
    words = ("import", folder, "-o", tmp_path / "out", "--classes", "liver=1,spleen=2", "--modality", "ct")
    assert command(*words, "--set", 'layout={label_grid="image"}').code == 0
    assert next(iter(read_manifest(tmp_path / "out").data_sets.values())).layout.label_grid == "image"
    answer = command(*words, "--set", "layout={lable_grid=1}")
    assert (answer.code, "did you mean 'label_grid'" in answer.err) == (2, True)


def test_normalised_is_understood_as_the_modality_that_it_once_was(command, tmp_path: Path):
    folder = plain(tmp_path / "site", "a")
    words = ("import", folder, "--classes", "liver=1,spleen=2", "--modality", "normalised")
    answer = command(*words, "-o", tmp_path / "out")
    assert (answer.code, "--modality other --normalised all" in answer.err) == (0, True)
    (data_set,) = read_manifest(tmp_path / "out").data_sets.values()
    assert (data_set.modality, data_set.normalised) == ("other", True)


def test_data_sets_are_said_to_be_normalised_all_or_by_name(command, tmp_path: Path):
    folders = [plain(tmp_path / name, name) for name in ("site", "ward")]
    words = ("import", *folders, "--classes", "liver=1,spleen=2", "--modality", "mr")
    for said, expected in (("site", {"site": True, "ward": False}), ("all", {"site": True, "ward": True})):
        assert command(*words, "--normalised", said, "-o", tmp_path / "out" / said).code == 0
        data_sets = read_manifest(tmp_path / "out" / said).data_sets
        assert {name: one.normalised for name, one in data_sets.items()} == expected
    answer = command(*words, "--normalised", "sit", "-o", tmp_path / "wrong")
    assert (answer.code, "did you mean 'site'" in answer.err) == (2, True)


def test_the_help_names_every_importer(command):
    text = " ".join(command("import", "--help").out.replace("│", " ").split())
    assert [name for name in IMPORTERS if name not in text] == []


# classes


def test_annotated_structures_may_have_any_spelling(four, command, tmp_path: Path):
    some = {name: four[name] for name in ("lits", "kits")}
    words = ("--annotated", "kits=kidney", "--annotated", "lits=Liver")
    assert command("import", *named(some), "-o", tmp_path / "out", *words).code == 0
    assert all(len(case.annotated) == 1 for case in read_manifest(tmp_path / "out").cases)


def test_sides_are_chosen_on_the_command_line(four, command, tmp_path: Path):
    site = plain(tmp_path / "site", "a", "b")
    words = (
        *("import", f"kits={four['kits']}", f"site={site}", "-o", tmp_path / "out"),
        *("--set", "site.classes={left_kidney = 1, right_kidney = 2}", "--modality", "ct"),
    )
    refused = command(*words)
    assert (refused.code, (tmp_path / "out").exists()) == (2, False)
    assert "kidneys in kits, kits_first_release; left kidney and right kidney in site" in refused.err
    labels = {file: file.read_bytes() for file in site.rglob("*.gz")}
    assert command(*words, "--sides", "kidneys=join", "--quiet").code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.label_space.structures == ("kidneys",)
    assert all(case.annotated == {"kidneys"} for case in manifest.cases)
    assert labels == {file: file.read_bytes() for file in site.rglob("*.gz")}
    for wrong in (("join", "--sides", "split"), ("jion",)):
        assert command(*words, "--sides", *wrong).code == 2


def test_two_importers_that_make_one_data_set_are_refused(four, tmp_path: Path):
    folders = {"kits": four["kits"], "kits_first_release": four["lits"]}
    with pytest.raises(ConfigError, match="makes a data set of the name 'kits_first_release' too"):
        run.import_data(folders, tmp_path / "out")


# duplicates


def test_equal_scans_of_two_data_sets_become_one_group(command, tmp_path: Path):
    north = plain(tmp_path / "north", "n1", "n2", seed=0)
    south = plain(tmp_path / "south", "s1", "s2", seed=1)  # s1 is n2
    words = ("--classes", "liver=1,spleen=2", "--modality", "ct")
    folders = named({"north": north, "south": south})
    plainly = command("import", *folders, *words, "-o", tmp_path / "plain")
    assert plainly.code == 0
    assert "equal images" not in plainly.err
    answer = command(
        "import", *folders, *words, "--find-duplicates", "-o", tmp_path / "out", "--json", "-j", 1
    )
    assert answer.code == 0, answer.err
    assert "equal images form one group: 1 (n2 = s1)" in answer.err
    assert any('"compare"' in line for line in answer.err.splitlines())
    assert json.loads(answer.out)["cases"]["train"] == 4
    groups = {case.id: case.group for case in read_manifest(tmp_path / "out").cases}
    assert groups == {"n1": "n1", "n2": "n2", "s1": "n2", "s2": "s2"}


def test_the_twin_of_a_test_case_does_not_train(command, tmp_path: Path):
    north = plain(tmp_path / "north", "n1", "n2", seed=0)
    south = plain(tmp_path / "south", "s1", "s2", seed=1)
    words = (
        "--classes",
        "liver=1,spleen=2",
        "--modality",
        "ct",
        "--find-duplicates",
        "--test-data-set",
        "south",
    )
    assert (
        command("import", *named({"north": north, "south": south}), *words, "-o", tmp_path / "out").code == 0
    )
    manifest = read_manifest(tmp_path / "out")
    assert (ids(manifest.split("train")), ids(manifest.split("test"))) == (["n1"], ["s1", "s2"])
    assert ids(manifest.split("")) == ["n2"]


# one data set left out


def test_a_test_data_set_takes_in_all_data_sets_of_its_importer(four, command, tmp_path: Path):
    words = ("import", *named(four), "-o", tmp_path / "out", "--test-data-set", "kits", "--validation", 1)
    assert command(*words).code == 0
    manifest = read_manifest(tmp_path / "out")
    assert ids(manifest.split("test")) == ["case_00001", "case_00002", "case_00003"]
    assert len(manifest.split("train")) == 8
    assert len(manifest.split("validation")) == 1


def test_a_test_data_set_that_cannot_be_is_refused(four, command, tmp_path: Path):
    words = ("import", *named(four), "-o", tmp_path / "out", "--test-data-set")
    assert "did you mean 'kits'" in command(*words, "kist").err
    assert "leave out --test or --test-data-set" in command(*words, "kits", "--test", 1).err
    assert not (tmp_path / "out").exists()


# what was imported before


def test_a_folder_with_a_manifest_is_refused_by_what_to_do_with_it(tiny_cohort, tmp_path: Path):
    with pytest.raises(ConfigError, match="a manifest lies in it") as refused:
        run.import_data([tiny_cohort], tmp_path / "m")
    assert f"labelwise check {tiny_cohort}" in str(refused.value)
    assert not (tmp_path / "m").exists()


def test_a_manifest_may_lie_in_the_folder_that_it_describes_and_be_written_again(tmp_path: Path):
    folder = plain(tmp_path / "own", "a", "b")
    options = {"classes": {"liver": 1, "spleen": 2}, "modality": "ct"}
    first = run.import_data([folder], folder, **options)
    assert run.import_data([folder], folder, **options) == first
    with pytest.raises(ConfigError, match="a manifest lies in it"):
        run.import_data([folder], tmp_path / "m", **options)
    again = run.import_data([folder], tmp_path / "m", importer="folders", **options)
    assert [case.id for case in again.cases] == ["a", "b"]
