"""The check lists every problem at once and says what to do about it."""

from __future__ import annotations

import csv
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.coverage import coverage
from labelwise.cohort.manifest import Manifest
from labelwise.formats import Layout, stored
from labelwise.quality.check import Problem, check, inspect_case, inspect_cohort
from tiny_cohort import SHAPE, make_case, manifest_of, paper_case, write_map, write_nifti, write_scan

EVERYTHING = (1, 3, 7)


def problems(*cases: object) -> list[Problem]:
    return check(manifest_of(*cases), workers=1)


def only(found: list[Problem], *parts: str, severity: str = "error") -> Problem:
    assert len(found) == 1, [str(problem) for problem in found]
    assert found[0].severity == severity
    for part in parts:
        assert part in str(found[0])
    return found[0]


def test_a_sound_cohort_has_no_problem(tmp_path: Path):
    assert (
        problems(*(make_case(tmp_path, name, *EVERYTHING) for name in "abc"), make_case(tmp_path, "d")) == []
    )


def test_all_problems_of_all_cases_are_listed_at_once_in_the_order_of_the_manifest(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "abcde"]
    cases[1].images[0].unlink()
    cases[2].images[0].write_bytes(b"damaged")
    write_map(tmp_path / "d_labels.nii.gz", 77)
    found = problems(*cases)
    assert [problem.case for problem in found] == ["b", "c", "d"]
    assert "no such file" in found[0].what
    assert "77" in found[2].what
    assert all(problem.severity == "error" and problem.remedy for problem in found)
    json.dumps([problem.to_json() for problem in found])


def test_progress_is_reported_after_each_case(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "ab"]
    check(manifest_of(*cases), workers=1, progress=lambda task, done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_cases_and_what_is_found_can_travel_to_and_from_worker_processes(tmp_path: Path):
    single = manifest_of(make_case(tmp_path, "a", *EVERYTHING, 77))
    assert pickle.loads(pickle.dumps(single)) == single
    facts = inspect_case(single)
    assert facts.problems
    assert pickle.loads(pickle.dumps(facts)) == facts


def test_a_missing_label_file_is_an_error(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    (tmp_path / "a_labels.nii.gz").unlink()
    assert "a_labels" in problems(case)[0].file


def test_a_folder_in_the_place_of_a_file_is_an_error_not_a_crash(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    case.images[0].unlink()
    case.images[0].mkdir()
    assert problems(case)[0].severity == "error"


def test_labels_of_another_shape_are_an_error(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    write_map(tmp_path / "a_labels.nii.gz", *EVERYTHING, shape=(6, 5, 3))
    found = only(
        problems(case),
        "cover a part of the image",
        "found 6 x 5 x 3 voxels",
        "expected 6 x 5 x 4 voxels",
        "a_labels.nii.gz",
    )
    assert found.code == "label-cropped"


def test_labels_at_another_place_are_an_error_but_rounding_is_not(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    affine = np.eye(4)
    affine[:3, 3] = 0.01
    write_map(tmp_path / "a_labels.nii.gz", *EVERYTHING, affine=affine)
    assert problems(case) == []
    affine[:3, 3] = 3
    write_map(tmp_path / "a_labels.nii.gz", *EVERYTHING, affine=affine)
    only(problems(case), "lie at different places")


def test_voxels_that_are_not_numbers_are_an_error(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    voxels = np.ones(SHAPE, dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    write_nifti(case.images[0], voxels)
    only(problems(case), "1 NaN")


def test_a_constant_image_is_an_error(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    write_nifti(case.images[0], np.full(SHAPE, -1024, dtype=np.float32))
    only(problems(case), "every voxel is -1024")


def test_the_same_image_twice_is_a_warning_and_across_splits_an_error(tmp_path: Path):
    first, second = make_case(tmp_path, "a", *EVERYTHING), make_case(tmp_path, "b", *EVERYTHING)
    write_scan(first.images[0], seed=1)
    write_scan(second.images[0], seed=1)
    only(problems(first, second), "same as that of case 'a'", severity="warning")
    only(problems(first, replace(second, split="test")), "one is in train, the other in test")


def test_the_same_image_in_another_axis_order_and_number_type_is_found(tmp_path: Path):
    first, second = make_case(tmp_path, "a", *EVERYTHING), make_case(tmp_path, "b", *EVERYTHING)
    voxels = np.random.default_rng(0).integers(-100, 100, SHAPE).astype(np.int16)
    write_nifti(first.images[0], voxels)
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    turned[:2, 3] = SHAPE[0] - 1, SHAPE[1] - 1
    write_nifti(second.images[0], voxels[::-1, ::-1].astype(np.float32), turned)
    only(problems(first, second), "same as that of case 'a'", severity="warning")


def test_images_that_differ_in_one_voxel_are_not_the_same(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "ab"]
    shape = (70, 70, 4)
    voxels = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    for case, file in ((cases[0], "a"), (cases[1], "b")):
        write_nifti(case.images[0], voxels)
        write_map(tmp_path / f"{file}_labels.nii.gz", *EVERYTHING, shape=shape)
        voxels[1, 0, 0] += 1  # no voxel of the fingerprint
    facts = [inspect_case(manifest_of(case)) for case in cases]
    assert facts[0].fingerprint == facts[1].fingerprint
    assert not [problem for problem in problems(*cases) if "same" in problem.what]


def test_the_same_image_of_one_patient_in_one_split_is_no_problem(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING, group="p1") for name in "ab"]
    for case in cases:
        write_scan(case.images[0], seed=1)
    assert problems(*cases) == []


def test_every_problem_has_a_code(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "abc"]
    cases[0].images[0].unlink()
    write_map(tmp_path / "b_labels.nii.gz", 77)
    write_nifti(cases[2].images[0], np.full(SHAPE, 3.0, dtype=np.float32))
    assert [problem.code for problem in problems(*cases)] == [
        "unreadable",
        "unknown-label-value",
        "constant-image",
    ]


def test_a_label_map_of_floating_point_numbers_is_read_but_noticed(tmp_path: Path):
    case = make_case(tmp_path, "a", *EVERYTHING)
    labels = np.zeros(SHAPE, dtype=np.float64)
    labels.ravel()[:3] = EVERYTHING
    write_nifti(tmp_path / "a_labels.nii.gz", labels)
    assert only(problems(case), "floating-point", severity="warning").code == "float-labels"
    labels.ravel()[0] = 1.5
    write_nifti(tmp_path / "a_labels.nii.gz", labels)
    only([p for p in problems(case) if p.severity == "error"], "not whole numbers")


def test_scans_with_intensities_far_from_the_others_of_their_data_set_are_noticed(tmp_path: Path):
    cases = [make_case(tmp_path, f"c{number}", *EVERYTHING) for number in range(8)]
    scan = np.random.default_rng(3).normal(600, 100, SHAPE).astype(np.float32)
    write_nifti(cases[4].images[0], scan)
    found = only(problems(*cases), "unusual intensities", "is usual in data set 'site'", severity="warning")
    assert found.case == "c4"


# coverage by case


def test_the_matrix_says_for_each_case_and_class_what_is_known(tmp_path: Path):
    cases = [
        make_case(tmp_path, "a", 1, 1, annotated=["liver", "spleen"]),
        make_case(tmp_path, "b"),
        make_case(tmp_path, "c", *EVERYTHING),
    ]
    cases[2].labels.unlink()
    matrix = inspect_cohort(manifest_of(*cases), workers=1).coverage
    states = [[case.state(structure) for structure in matrix.structures] for case in matrix.cases]
    assert states == [["present", "absent", "not annotated"], ["unlabelled"] * 3, ["unreadable"] * 3]
    rows = list(csv.DictReader(io.StringIO(matrix.csv())))
    assert len(rows) == 9
    assert rows[0] == {
        "case": "a", "data_set": "site", "split": "train", "class": "liver", "annotated": "yes", "present": "yes",
        "voxels": "2",
    }  # fmt: skip
    assert [row["voxels"] for row in rows[1:4]] == ["0", "", ""]
    assert [row["annotated"] for row in rows[1:4]] == ["yes", "no", "no"]


def test_a_patient_in_two_splits_is_an_error(tmp_path: Path):
    cases = [
        make_case(tmp_path, name, *EVERYTHING, group="p1", split=split)
        for name, split in (("a", "train"), ("b", "test"))
    ]
    only(problems(*cases), "group 'p1' is in test and train: a, b")
    assert problems(cases[0], replace(cases[1], split="")) == []


def test_an_unusual_voxel_size_is_a_warning(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "abc"]
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    write_scan(cases[2].images[0], seed=9, affine=affine)
    write_map(tmp_path / "c_labels.nii.gz", *EVERYTHING, affine=affine)
    only(problems(*cases), "case 'c'", "1 x 1 x 5 mm", "usual in data set", severity="warning")
    affine = np.diag([0.01, 1.0, 1.0, 1.0])
    write_scan(cases[2].images[0], seed=9, affine=affine)
    write_map(tmp_path / "c_labels.nii.gz", *EVERYTHING, affine=affine)
    assert "unlikely voxel size" in problems(*cases)[0].what


def test_a_case_with_other_channels_is_an_error(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "abc"]
    second = write_scan(tmp_path / "second.nii.gz", seed=5)
    cases[1] = replace(cases[1], images=(*cases[1].images, second))
    only(problems(*cases), "case 'b'", "has 2 images, most cases have 1")


def test_an_image_that_every_training_case_lacks_is_an_error(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "abc"]
    lacking = [replace(case, missing=(1,)) for case in cases]
    only(problems(*lacking), "no training case has image 2")
    second = write_scan(tmp_path / "second.nii.gz", seed=5)
    whole = replace(cases[2], images=(*cases[2].images, second))
    assert problems(*lacking[:2], whole) == []


def test_a_class_that_no_training_case_annotates_is_an_error(tmp_path: Path):
    train = make_case(tmp_path, "a", 1, 3, annotated=["liver", "spleen"])
    test = make_case(tmp_path, "b", *EVERYTHING, split="test")
    only(problems(train, test), "class 'pancreas' is annotated in no training case")


def test_a_class_without_any_voxel_is_a_warning(tmp_path: Path):
    only(
        problems(make_case(tmp_path, "a", 1, 3)),
        "class 'pancreas'",
        "no case has a voxel",
        severity="warning",
    )


def test_a_class_that_is_not_annotated_does_not_count_as_present(tmp_path: Path):
    cases = (
        make_case(tmp_path, "a", *EVERYTHING, annotated=["liver", "spleen"]),
        make_case(tmp_path, "b", 1, annotated=["pancreas"]),
    )
    only(problems(*cases), "class 'pancreas'", "no case has a voxel", severity="warning")


def test_a_case_whose_voxels_are_all_ignored_is_an_error(tmp_path: Path):
    case = make_case(tmp_path, "a", *[255] * int(np.prod(SHAPE)))
    assert "no voxel has a label" in problems(case, make_case(tmp_path, "b", *EVERYTHING))[0].what


@pytest.mark.parametrize(
    ("split", "severity", "part"),
    [
        ("train", "error", "no training case is annotated"),
        ("test", "warning", "no case is in the split 'train'"),
    ],
)
def test_a_cohort_with_nothing_to_learn_from_is_noticed(tmp_path: Path, split: str, severity: str, part: str):
    only(problems(make_case(tmp_path, "a", split=split)), part, severity=severity)


# coverage


def table() -> Manifest:
    liver, none = frozenset({"liver"}), frozenset[str]()
    return manifest_of(
        paper_case(1, data_set="lits", annotated=liver),
        paper_case(2, data_set="lits", annotated=liver, split="test"),
        paper_case(3, data_set="lits", annotated=none),
        paper_case(4, data_set="whole-body"),
    )


def test_coverage_counts_annotated_and_unlabelled_cases_by_data_set():
    rows = coverage(table()).rows
    assert [(row.data_set, row.cases, row.unlabelled, tuple(row.annotated.values())) for row in rows] == [
        ("lits", 3, 1, (2, 0, 0)),
        ("whole-body", 1, 0, (1, 1, 1)),
    ]
    assert coverage(table(), "test").rows[0].cases == 1
    json.dumps(coverage(table()).to_json())


def test_coverage_is_rendered_in_columns():
    assert coverage(table()).text().splitlines() == [
        "data set    cases  liver  spleen  pancreas  unlabelled",
        "lits            3      2       0         0           1",
        "whole-body      1      1       1         1           0",
        "total           4      3       1         1           1",
    ]


def test_a_disk_that_fails_while_a_case_is_read_is_a_problem_of_that_case(tmp_path: Path, monkeypatch):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "ab"]

    def fail_on_b(path: Path, layout: Layout) -> object:
        if path.name.startswith("b"):
            raise OSError(5, "Input/output error", str(path))
        return read(path, layout)

    read = stored.image
    monkeypatch.setattr(stored, "image", fail_on_b)
    only(problems(*cases), "case 'b'", "Input/output error", "b.nii.gz")


def test_the_label_file_of_a_case_without_annotation_is_looked_at_too(tmp_path: Path):
    sound = make_case(tmp_path, "a", *EVERYTHING)
    wrong = make_case(tmp_path, "b", 1, 99, annotated=())
    only(problems(sound, wrong), "case 'b'", "value 99")
    wrong.labels.unlink()
    only(problems(sound, wrong), "case 'b'", "no such file")


def test_hidden_annotation_is_no_problem(tmp_path: Path):
    assert problems(make_case(tmp_path, "a", *EVERYTHING), make_case(tmp_path, "b", 255, annotated=())) == []


def test_a_ct_without_a_body_is_an_error(tmp_path: Path):
    cases = [make_case(tmp_path, name, *EVERYTHING) for name in "ab"]
    write_nifti(cases[1].images[0], np.linspace(-1000, -400, 120, dtype=np.float32).reshape(SHAPE))
    only(problems(*cases), "case 'b'", "no body in this CT", "Hounsfield")
