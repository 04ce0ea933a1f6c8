"""What the check says about scans and labels that can be read but cannot be right, and its silence about sound ones."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from painted_ct import AFFINE, BOXES, SIZE, VALUES, paint, painted, painted_manifest, save

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.formats import Layout
from labelwise.importers import acdc, la2018
from labelwise.quality.check import Problem, check
from labelwise.quality.stored_case import find_regions, in_memory_order
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.types import Case, LabelSpace

HU, LABELS = paint()


def problems(*cases: Case, **fields: object) -> list[Problem]:
    return check(painted_manifest(*cases, **fields), workers=1)


def codes(*cases: Case, **fields: object) -> list[str]:
    return [problem.code for problem in problems(*cases, **fields)]


def only(found: list[Problem], code: str, *parts: str) -> Problem:
    assert [problem.code for problem in found] == [code], [str(problem) for problem in found]
    for part in parts:
        assert part in str(found[0])
    return found[0]


# nothing is said without a reason


def test_a_sound_ct_has_no_problem_in_any_axis_order(tmp_path: Path):
    sound = nib.Nifti1Image(HU, AFFINE), nib.Nifti1Image(LABELS, AFFINE)
    for code in ("RAS", "LPS", "PIR", "SAL"):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
        )
        image, labels = (scan.as_reoriented(turn) for scan in sound)
        case = painted(
            tmp_path, "a", np.asarray(image.dataobj), np.asarray(labels.dataobj), affine=image.affine
        )
        assert codes(case) == [], code


def test_image_and_labels_may_be_stored_in_different_axis_orders(tmp_path: Path):
    case = painted(tmp_path)
    turned = nib.as_closest_canonical(nib.Nifti1Image(LABELS, AFFINE)).as_reoriented(
        nib.orientations.axcodes2ornt("SPL")
    )
    save(case.labels, np.asarray(turned.dataobj), turned.affine)
    assert codes(case) == []


def test_a_synthetic_cohort_has_no_problem_but_structures_that_are_cut(tmp_path: Path):
    manifest = make_cohort(tmp_path, SyntheticConfig(cases_per_site=1, unlabelled=2, validation=1, test=1))
    assert {problem.code for problem in check(manifest, workers=1)} <= {
        "cut-by-field-of-view",
        "label-islands",
    }


@pytest.mark.real_data
def test_the_real_cohorts_have_only_true_problems(real_data: Path):
    manifest = la2018.scan(real_data / "la2018")
    assert check(manifest.replace_cases(manifest.cases[:20]), workers=1) == []
    manifest = acdc.scan(real_data / "acdc")
    found = {problem.code for problem in check(manifest, workers=1)}
    assert found == {"duplicate", "label-islands"}  # two patients have the same images


# intensities


def test_stored_values_without_their_intercept_are_noticed(tmp_path: Path):
    found = only(problems(painted(tmp_path, hu=np.maximum(HU + 1024, 0))), "no-air", "is 0", "subtract 1024")
    assert found.severity == "warning"


def test_a_scan_that_was_windowed_is_noticed(tmp_path: Path):
    found = codes(painted(tmp_path, hu=np.clip(HU, -200, 120)))
    assert found.count("clipped-intensities") == 2
    assert set(found) == {"clipped-intensities", "no-air"}


def test_a_ct_scaled_to_0_to_1_is_noticed(tmp_path: Path):
    scaled = ((HU + 1000) / 1700).astype(np.float32)
    assert codes(painted(tmp_path, hu=scaled, annotated=frozenset())) == [
        "rescaled-intensities", "nothing-annotated",
    ]  # fmt: skip


def test_air_at_another_value_is_noticed(tmp_path: Path):
    only(problems(painted(tmp_path, hu=HU - 200)), "air-not-at-minus-1000", "air is at -121")


def test_padding_below_air_is_no_problem(tmp_path: Path):
    padded = HU.copy()
    padded[:2] = -2000
    assert codes(painted(tmp_path, hu=padded)) == []


def test_the_rules_of_ct_say_nothing_about_mr(tmp_path: Path):
    scaled = ((HU + 1000) / 1700).astype(np.float32)
    assert codes(painted(tmp_path, hu=scaled), modality="mr") == []


# geometry


def test_a_header_that_says_nothing_is_suspect(tmp_path: Path):
    found = codes(painted(tmp_path, affine=np.eye(4)))
    assert found == ["suspect-geometry", "unlikely-height"]  # and nothing about sides
    centred = np.diag([-1.0, 1, 1, 1])
    centred[:3, 3] = (SIZE - 1) / 2 * np.array([1, -1, -1])
    assert "suspect-geometry" in codes(painted(tmp_path, affine=centred))


def test_one_millimetre_is_not_suspect_where_the_scan_has_a_place(tmp_path: Path):
    affine = np.eye(4)
    affine[:3, 3] = -120, 30, 900
    assert "suspect-geometry" not in codes(painted(tmp_path, affine=affine))


def test_a_scan_too_low_or_too_high_for_a_body_is_noticed(tmp_path: Path):
    cut = problems(painted(tmp_path, hu=HU[:, :, 12:20].copy(), labels=LABELS[:, :, 12:20].copy()))
    assert "the scan is 64 mm high" in [problem.what for problem in cut]
    found = problems(painted(tmp_path, affine=AFFINE @ np.diag([1, 1, 10.0, 1])))
    assert [problem.code for problem in found] == ["unlikely-spacing", "unlikely-height"]


# where labels lie


def test_labels_beside_the_image_whose_voxels_fit_have_a_wrong_header_only(tmp_path: Path):
    found = only(
        problems(painted(tmp_path, label_affine=np.diag([-8.0, -8, 8, 1]))),
        "label-header",
        "lie at different",
    )
    assert found.severity == "error"
    assert "--fix" in found.remedy


def test_labels_without_a_header_have_a_wrong_header_only_in_any_modality(tmp_path: Path):
    assert "label-header" in codes(painted(tmp_path, label_affine=np.eye(4)), modality="mr")


def test_labels_elsewhere_are_not_believed_without_evidence(tmp_path: Path):
    moved = AFFINE.copy()
    moved[0, 3] += 30
    assert "label-elsewhere" in codes(painted(tmp_path, label_affine=moved), modality="mr")
    shifted = np.roll(LABELS, 14, axis=1)
    assert codes(painted(tmp_path, labels=shifted, label_affine=moved))[0] == "label-elsewhere"


def test_labels_on_fat_and_air_are_noticed_and_the_flip_that_fits_is_named(tmp_path: Path):
    case = painted(tmp_path, labels=LABELS[:, :, ::-1].copy(), annotated=frozenset({"liver", "right kidney"}))
    found = only(
        [p for p in problems(case) if p.code == "label-misplaced"], "label-misplaced", "liver", "median"
    )
    assert "label_flip = 'z'" in found.remedy


def test_a_structure_in_air_is_noticed(tmp_path: Path):
    labels = np.where(LABELS == 5, 0, LABELS)
    labels[1:3, 1:20, 10:20] = 5
    assert "label-outside-body" in codes(painted(tmp_path, labels=labels))


def renamed(**pairs: int) -> np.ndarray:
    """LABELS with the values of the given classes."""
    by_name = {name.replace(" ", "_"): value for value, name in VALUES.items()}
    table = np.arange(6, dtype=np.uint8)
    for name, value in pairs.items():
        table[by_name[name]] = value
    return table[LABELS]


def test_swapped_names_of_a_pair_are_an_error(tmp_path: Path):
    case = painted(tmp_path, labels=renamed(left_kidney=4, right_kidney=3))
    found = only(problems(case), "left-right-names", "'left kidney' lies right of 'right kidney'")
    assert found.severity == "error"


def test_a_mirrored_scan_is_a_warning(tmp_path: Path):
    case = painted(tmp_path, hu=HU[::-1].copy(), labels=LABELS[::-1].copy())
    found = only(problems(case), "mirrored", "'liver' lies on the left", "situs inversus")
    assert found.severity == "warning"


def test_a_structure_on_the_wrong_side_among_others_that_are_right_is_a_warning(tmp_path: Path):
    case = painted(tmp_path, labels=renamed(liver=2, spleen=1))
    only(problems(case), "left-right-mixed", "'liver' lies on the left; 'spleen' lies on the right")


def test_one_kidney_alone_decides_nothing(tmp_path: Path):
    case = painted(tmp_path, labels=renamed(left_kidney=0, right_kidney=3))
    assert "left-right-names" not in codes(case)


def test_structures_at_the_end_of_the_scan_are_listed_with_the_faces(tmp_path: Path):
    hu, labels = HU[:, :, 12:31].copy(), LABELS[:, :, 12:31].copy()
    found = only(problems(painted(tmp_path, hu=hu, labels=labels)), "cut-by-field-of-view")
    assert "'left kidney' at the bottom" in found.what
    assert "'liver' at the top" in found.what
    assert "gallbladder" not in found.what


def test_islands_far_away_are_counted(tmp_path: Path):
    labels = LABELS.copy()
    labels[10, 28, 30:32] = 1
    labels[30, 30, 5] = 1
    labels[35, 20, 25] = 1  # one voxel beside the liver
    only(problems(painted(tmp_path, labels=labels)), "label-islands", "'liver' 2 (3 voxels)")


def test_what_is_not_annotated_is_not_judged(tmp_path: Path):
    labels = renamed(left_kidney=4, right_kidney=3)
    assert codes(painted(tmp_path, labels=labels, annotated=frozenset({"liver"}))) == [
        f"class-{what}" for what in ["never-annotated"] * 4
    ]


# boxes and counts against brute force


@pytest.mark.parametrize("low", [0, -2])
def test_regions_are_those_of_brute_force_in_every_axis_order(low: int):
    random = np.random.default_rng(1)
    labels = (random.integers(0, 6, (7, 5, 6)) * (random.random((7, 5, 6)) < 0.3) + low).astype(np.int16)
    for view in (
        labels,
        np.asfortranarray(labels),
        labels[::-1, :, ::-1],
        labels.transpose(2, 0, 1)[:, ::-1],
    ):
        found = find_regions(view)
        for value in np.unique(view):
            places = np.argwhere(view == value)
            if value == 0 and low == 0:
                continue
            assert found[value].voxels == len(places)
            assert found[value].start == tuple(places.min(axis=0))
            assert found[value].stop == tuple(places.max(axis=0) + 1)
        memory, axes, flips = in_memory_order(view)
        assert memory.flags.c_contiguous
        back = memory.transpose(np.argsort(axes))[
            tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        ]
        assert np.array_equal(back, view)


def test_a_scan_without_a_header_has_no_sides(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"], file["label"] = HU[::-1].astype(np.float32), LABELS[::-1]
    data_set = DataSet("site", VALUES, "ct", Layout(spacing_mm=(8.0, 8.0, 8.0)))
    case = Case(
        "a", (tmp_path / "a.h5",), tmp_path / "a.h5", data_set.structures, data_set="site", split="train"
    )
    assert check(Manifest(LabelSpace(tuple(VALUES.values())), {"site": data_set}, (case,)), workers=1) == []
    assert len(BOXES) == len(data_set.structures)
