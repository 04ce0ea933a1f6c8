"""From the folders of the public data sets to the published settings of LTUDA, case by case and by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import by_id, ids, touch
from union_trees import make_kits, make_organ12, make_union

from labelwise.cohort.manifest import read_case_labels, read_manifest

# The test lists of the publication; all other cases train, but for those that it does not use.
TESTS = {
    "volume-{}": (0, 4, 9, 13, 17, 21, 26, 53, 58, 62, 67, 71, 76, 80, 85, 99, 102, 107, 111, 116, 120, 125),
    "spleen_{}": (8, 9, 10, 28, 32, 52, 60, 62),
    "case_{:05d}": (
        0, 10, 15, 20, 25, 31, 35, 45, 50, 54, 60, 62, 65, 72, 75, 80, 85, 91, 95, 100, 106, 110, 115, 120, 125, 130,
        132, 140, 142, 150, 155, 164, 170, 175, 180, 185, 190, 195, 201, 205,
    ),
    "PANCREAS_{:04d}": (8, 18, 24, 48, 54, 64, 65, 67, 68, 70, 71, 72, 74, 77, 79, 81),
}  # fmt: skip
UNUSED = {"volume-{}": (*range(28, 53), 94), "case_{:05d}": (1, 27, 53, 59, 71, 165)}
TOY = {
    "liver": (5, 35, 37, 17, 27, 18, 25, 7, 28, 44),
    "spleen": (40, 30, 19, 3, 24, 32, 4, 42, 23, 15),
    "kidneys": (12, 29, 39, 50, 33, 45, 8, 34, 14, 20),
    "pancreas": (49, 13, 47, 9, 48, 2, 43, 22, 38, 10),
}


def named(numbers: dict[str, tuple[int, ...]]) -> set[str]:
    return {pattern.format(number) for pattern, some in numbers.items() for number in some}


@pytest.fixture(scope="module")
def union_folders(tmp_path_factory) -> dict[str, Path]:
    return make_union(tmp_path_factory.mktemp("union"))


def test_four_folders_become_the_published_union_in_two_commands(union_folders, command, tmp_path: Path):
    data_sets = [f"{name}={folder}" for name, folder in union_folders.items()]
    answer = command("import", *data_sets, "-o", tmp_path / "all")
    assert answer.code == 0, answer.err
    assert "classes liver, spleen, kidneys, pancreas" in answer.out
    everything = read_manifest(tmp_path / "all")
    assert len(everything.cases) == 131 + 41 + 210 + 82
    assert list(everything.data_sets) == ["lits", "msd_spleen", "kits", "kits_first_release", "nih"]

    words = ("simulate", tmp_path / "all", "--mode", "ltuda_union", "--set", "drop_leaks=false")
    assert command(*words, "-o", tmp_path / "union").code == 0
    union = read_manifest(tmp_path / "union")
    assert set(ids(union.split("test"))) == named(TESTS)
    assert set(ids(union.split(""))) == named(UNUSED)
    assert set(ids(union.split("train"))) == set(ids(everything.cases)) - named(TESTS) - named(UNUSED)
    assert (len(union.split("train")), len(union.split("test"))) == (346, 86)
    structures = {"volume": "liver", "spleen": "spleen", "case": "kidneys", "PANCREAS": "pancreas"}
    for case in union.split("train") + union.split("test"):
        assert case.annotated == {structures[case.id.replace("-", "_").split("_")[0]]}


def test_labels_of_the_union_are_read_by_the_published_rules(union_folders, command, tmp_path: Path):
    data_sets = [f"{name}={folder}" for name, folder in union_folders.items()]
    assert command("import", *data_sets, "-o", tmp_path / "all").code == 0
    command("simulate", tmp_path / "all", "--mode", "ltuda_union", "-o", tmp_path / "union")
    union = read_manifest(tmp_path / "union")
    assert union.label_space.structures == ("liver", "spleen", "kidneys", "pancreas")
    voxels = {}
    for name in ("volume-0", "spleen_2", "case_00000", "case_00003", "PANCREAS_0001"):
        labels = read_case_labels(by_id(union)[name], union).data
        voxels[name] = sorted(labels[labels > 0].tolist())
    assert voxels == {
        "volume-0": [1, 1],  # a tumour of LiTS is liver
        "spleen_2": [2],
        "case_00000": [3],  # a tumour of KiTS is background
        "case_00003": [3],
        "PANCREAS_0001": [4],
    }
    # The withdrawn scans take no part unless they are asked for.
    assert {"PANCREAS_0025", "PANCREAS_0070"} <= set(ids(union.split("")))


def test_the_twelve_structures_of_abdomenct1k_become_the_published_toy_set(command, tmp_path: Path):
    folder = make_organ12(tmp_path / "data")
    touch(folder / "four", "Case_00001_0000.nii.gz", "Case_00001.nii.gz")  # the larger part of the data set
    assert command("import", folder, "-o", tmp_path / "all").code == 0
    assert list(read_manifest(tmp_path / "all").data_sets) == ["abdomenct1k", "abdomenct1k_organ12"]
    answer = command("simulate", tmp_path / "all", "--mode", "ltuda_toy", "-o", tmp_path / "toy")
    assert answer.code == 0, answer.err
    toy = read_manifest(tmp_path / "toy")
    assert ids(toy.split("test")) == [f"Organ12_{number:04d}" for number in range(1, 51, 5)]
    for structure, numbers in TOY.items():
        teaching = {case.id for case in toy.split("train") if case.annotated == {structure}}
        assert teaching == {f"Organ12_{number:04d}" for number in numbers}
    assert len(toy.split("train")) == 40


def test_a_role_may_have_another_name_and_several_data_sets(union_folders, command, tmp_path: Path):
    data_sets = [f"{name.upper()}={folder}" for name, folder in union_folders.items()]
    assert command("import", *data_sets, "-o", tmp_path / "all").code == 0
    settings = [word for name in union_folders for word in ("--set", f"{name}={name.upper()}")]
    words = ("simulate", tmp_path / "all", "--mode", "ltuda_union", *settings)
    answer = command(*words, "-o", tmp_path / "union")
    assert answer.code == 0, answer.err
    union = read_manifest(tmp_path / "union")
    assert by_id(union)["case_00003"].data_set == "KITS_first_release"
    assert by_id(union)["case_00003"].split == "train"


def test_what_is_missing_of_a_role_is_listed_once(union_folders, command, tmp_path: Path):
    fewer = union_folders | {"kits": make_kits(tmp_path / "kits", set(range(210)) - {5, 12})}
    command("import", *[f"{name}={folder}" for name, folder in fewer.items()], "-o", tmp_path / "all")
    answer = command("simulate", tmp_path / "all", "--mode", "ltuda_union", "-o", tmp_path / "union")
    assert answer.code == 3
    assert "data set 'kits' has no annotated case 5, 12" in answer.err
