"""The synthetic cohort: reproducible, anatomically in order, and labelled the way each data set says."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from labelwise.cohort.manifest import Manifest, read_case_image, read_case_labels, read_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import read_labels
from labelwise.synthetic.generate import Scanner, SyntheticConfig, make_cohort, make_scan, scanner_of
from labelwise.synthetic.phantom import CLASS_OF_TISSUE, LABEL_SPACE, TISSUE_INDEX, TISSUES, Painter, Pose
from labelwise.types import IGNORE, Volume

LIVER, SPLEEN, KIDNEYS, PANCREAS = range(1, 5)
SMALL = SyntheticConfig(
    sites={"site_a": ("liver",), "site_b": ("pancreas", "spleen")},
    cases_per_site=2,
    unlabelled=1,
    validation=1,
    test=1,
    shape=(32, 26, 20),
)


@pytest.fixture(scope="module")
def scans() -> list[tuple[Volume, Volume]]:
    return [make_scan(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_cohort(tmp_path_factory.mktemp("cohort"), SMALL)


def centre_mm(labels: Volume, index: int) -> np.ndarray:
    return np.argwhere(labels.data == index).mean(axis=0) @ labels.affine[:3, :3] + labels.affine[:3, 3]


def millilitres(labels: Volume) -> np.ndarray:
    counts = np.bincount(labels.data.ravel(), minlength=LABEL_SPACE.num_classes)
    return counts * np.prod(labels.spacing_mm) / 1000


# ---------------------------------------------------------------------------------------------- one scan


def test_equal_seeds_give_equal_voxels_and_other_seeds_do_not():
    (image, labels), (again, labels_again), (other, _) = (make_scan(seed, SMALL) for seed in (3, 3, 4))
    np.testing.assert_array_equal(image.data, again.data)
    np.testing.assert_array_equal(labels.data, labels_again.data)
    assert image.data.shape != other.data.shape or (image.data != other.data).mean() > 0.2


def test_image_and_labels_lie_on_one_grid_of_about_the_default_size(scans):
    for image, labels in scans:
        assert image.data.dtype == np.int16
        assert labels.data.dtype == np.uint8
        assert image.data.shape == (1, *labels.data.shape)
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.shape[:2] == (64, 52)
        assert 30 <= image.shape[2] <= 50


def test_spacing_is_anisotropic_and_differs_between_patients(scans):
    spacings = np.array([image.spacing_mm for image, _ in scans])
    assert (spacings[:, 0] == spacings[:, 1]).all()
    assert np.ptp(spacings[:, 0]) > 0.1
    assert (spacings[:, 2] > spacings[:, 0]).all()


def test_hu_lie_in_the_range_of_ct_with_air_around_the_patient(scans):
    for image, _ in scans:
        assert image.data.min() == -1000
        assert 300 < image.data.max() < 2000
        assert np.median(image.data[0, :, -2:]) < -950


def test_structures_have_plausible_volumes_and_all_classes_occur(scans):
    volumes = np.array([millilitres(labels) for _, labels in scans])[:, 1:]
    assert (volumes > [300, 30, 60, 20]).all()
    assert (volumes < [2600, 700, 700, 450]).all()
    assert (volumes[:, 0] == volumes.max(axis=1)).all()


def test_convention_the_liver_lies_at_high_x_and_the_spleen_at_low_x(scans):
    """RAS+: x grows to the patient's right, y to the front, z to the head."""
    for _, labels in scans:
        liver, spleen, kidneys, pancreas = (centre_mm(labels, index) for index in range(1, 5))
        assert spleen[0] < pancreas[0] < liver[0]
        assert max(spleen[1], kidneys[1]) < pancreas[1]
        assert kidneys[2] < min(liver[2], spleen[2])


def test_contrast_phase_shifts_the_structures_differently():
    average = SyntheticConfig(variation=0, shape=(32, 26, 20))
    means = {}
    for phase in (0.0, 1.0):
        image, labels = make_scan(0, average, Scanner(noise_hu=0, phase=phase))
        means[phase] = np.array([image.data[0][labels.data == index].mean() for index in range(1, 5)])
    liver, spleen, kidneys, pancreas = means[1.0] - means[0.0]
    assert liver > 15
    assert max(spleen, pancreas) < 0
    assert kidneys > 0
    assert means[1.0][2] > means[1.0][1] > means[1.0][0] > means[1.0][3]


def test_another_shape_shows_the_same_patient():
    coarse, fine = (make_scan(5, SyntheticConfig(shape=shape))[1] for shape in ((64, 52, 40), (96, 78, 60)))
    np.testing.assert_allclose(millilitres(fine)[1:], millilitres(coarse)[1:], rtol=0.08)
    for index in range(1, 5):
        np.testing.assert_allclose(centre_mm(fine, index), centre_mm(coarse, index), atol=2.5)


def test_without_variation_everybody_has_the_same_structures():
    average = SyntheticConfig(variation=0, shape=(32, 26, 20))
    first, second = (make_scan(seed, average)[1] for seed in (0, 1))
    solid = np.isin(first.data, (LIVER, SPLEEN, KIDNEYS, PANCREAS))
    assert (first.data == second.data)[solid].mean() > 0.9


def test_a_kidney_is_missing_in_a_few_patients():
    many = SyntheticConfig(shape=(16, 16, 16))
    kidneys = [make_scan(seed, many)[1].data == KIDNEYS for seed in range(60)]
    one_sided = sum(mask[:8].any() != mask[8:].any() for mask in kidneys)
    assert 1 <= one_sided <= 12


def test_a_scan_takes_less_than_a_third_of_a_second():
    times = []
    for seed in range(3):
        begin = time.process_time()
        make_scan(seed)
        times.append(time.process_time() - begin)
    assert min(times) < 0.3


# ---------------------------------------------------------------------------------------------- painting


def flat_painter() -> Painter:
    axis = np.arange(-20, 21, dtype=np.float32)
    painter = Painter(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), np.random.default_rng(0), 0.0)
    painter.fill(np.ones((41, 41, 41), bool), "cavity")
    return painter


def test_an_ellipsoid_has_its_volume_and_its_tilt():
    painter = flat_painter()
    painter.ellipsoid("liver", (2, 0, 0), (15, 6, 8), tilt=(0, 0, 90))
    mask = painter.tissue == TISSUE_INDEX["liver"]
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 15 * 6 * 8, rel=0.03)
    np.testing.assert_allclose(np.ptp(np.argwhere(mask), axis=0) / 2, (6, 15, 8), atol=1.01)


def test_a_tube_has_its_volume_between_round_ends():
    painter = flat_painter()
    painter.tube("pancreas", [(-10, 0, 0), (0, 0, 0), (10, 0, 0)], (5.4, 5.4, 5.4))
    found = (painter.tissue == TISSUE_INDEX["pancreas"]).sum()
    assert found == pytest.approx(np.pi * 5.4**2 * (20 + 4 / 3 * 5.4), rel=0.05)


def test_painting_replaces_only_the_tissues_it_may():
    painter = flat_painter()
    painter.ellipsoid("liver", (0, 0, 0), (10, 10, 10))
    before = painter.tissue.copy()
    painter.ellipsoid("spleen", (0, 0, 0), (10, 10, 10))
    np.testing.assert_array_equal(painter.tissue, before)
    painter.ellipsoid("liver lesion", (0, 0, 0), (30, 30, 30), over=("liver",))
    assert set(np.unique(painter.tissue)) == {TISSUE_INDEX["cavity"], TISSUE_INDEX["liver lesion"]}


def test_a_body_outside_the_scan_paints_nothing():
    painter = flat_painter()
    painter.ellipsoid("liver", (100, 0, 0), (10, 10, 10))
    painter.tube("pancreas", [(0, 90, 0), (0, 90, 9)], (5, 5))
    assert (painter.tissue == TISSUE_INDEX["cavity"]).all()


def test_a_pose_turns_and_scales_about_its_pivot():
    quarter = 2 * np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose = Pose(np.array([1.0, 0, 0]), np.array([0.0, 0, 5]), quarter)
    np.testing.assert_allclose(pose(np.array([2.0, 0, 0])), (1, 2, 5))
    assert pose.scale == pytest.approx(2)


def test_every_structure_has_a_tissue():
    assert set(CLASS_OF_TISSUE) == set(range(LABEL_SPACE.num_classes))
    assert CLASS_OF_TISSUE[0] == 0
    assert next(iter(TISSUES)) == "air"


# ---------------------------------------------------------------------------------------------- the cohort


def test_the_manifest_on_disk_is_the_one_returned(cohort):
    folder = cohort.cases[0].images[0].parents[1]
    assert read_manifest(folder) == cohort


def test_each_site_annotates_its_own_structures_only(cohort):
    annotated = {case.id: set(case.annotated) for case in cohort.cases}
    assert annotated == {
        "site_a_000": {"liver"},
        "site_a_001": {"liver"},
        "site_b_000": {"pancreas", "spleen"},
        "site_b_001": {"pancreas", "spleen"},
        "unlabelled_000": set(),
        "validation_000": set(LABEL_SPACE.structures),
        "test_000": set(LABEL_SPACE.structures),
    }
    assert [len(cohort.split(split)) for split in ("train", "validation", "test")] == [5, 1, 1]
    assert all(case.labels is None for case in cohort.cases if not case.annotated)


def test_values_of_the_files_mean_what_the_data_set_says(cohort):
    cases = {case.id: case for case in cohort.cases}
    stored = read_labels(cases["site_b_000"].labels)
    assert set(np.unique(stored.data)) == {0, 1, 2}
    assert cohort.data_sets["site_b"].values == {0: "background", 1: "pancreas", 2: "spleen"}
    indices = read_case_labels(cases["site_b_000"], cohort).data
    np.testing.assert_array_equal(indices == PANCREAS, stored.data == 1)
    np.testing.assert_array_equal(indices == SPLEEN, stored.data == 2)
    assert (read_case_labels(cases["unlabelled_000"], cohort).data == IGNORE).all()
    assert set(np.unique(read_case_labels(cases["test_000"], cohort).data)) == set(range(5))


def test_files_hold_the_voxels_of_make_scan(cohort):
    case = cohort.split("test")[0]
    image, labels = make_scan([SMALL.seed, *case.id.encode()], SMALL, scanner_of("site_a", SMALL))
    stored = read_case_image(case, cohort)
    np.testing.assert_array_equal(stored.data, image.data)
    np.testing.assert_allclose(stored.affine, image.affine, rtol=1e-5)
    np.testing.assert_array_equal(read_case_labels(case, cohort).data, labels.data)


def test_the_upper_limit_has_the_same_images_with_all_labels(cohort, tmp_path):
    complete = make_cohort(tmp_path, replace(SMALL, full=True))
    for partly, fully in zip(cohort.cases, complete.cases, strict=True):
        assert partly.id == fully.id
        assert fully.annotated == set(LABEL_SPACE.structures)
        np.testing.assert_array_equal(
            read_case_image(partly, cohort).data, read_case_image(fully, complete).data
        )
        known = read_case_labels(partly, cohort).data
        truth = read_case_labels(fully, complete).data
        for structure in partly.annotated:
            index = LABEL_SPACE.index(structure)
            np.testing.assert_array_equal(known == index, truth == index)


def test_a_larger_cohort_contains_the_smaller_one(cohort, tmp_path):
    larger = make_cohort(tmp_path, replace(SMALL, cases_per_site=3, test=2))
    images = {case.id: read_case_image(case, larger).data for case in larger.cases}
    for case in cohort.cases:
        np.testing.assert_array_equal(images[case.id], read_case_image(case, cohort).data)


def test_sites_have_scanners_of_their_own():
    first, second, again = (scanner_of(site, SMALL) for site in ("site_a", "site_b", "site_a"))
    assert first == again
    assert first != second
    assert scanner_of("site_b", replace(SMALL, scanner_variation=0)) == Scanner()


# ---------------------------------------------------------------------------------------------- bad settings


def test_an_unknown_structure_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="site 'x': unknown structure 'spleeen'; did you mean 'spleen'"):
        SyntheticConfig(sites={"x": ("spleeen",)})


@pytest.mark.parametrize("name", ["test", "unlabelled", "a/b", "", "a;b"])
def test_a_site_needs_a_name_of_its_own(name):
    with pytest.raises(ConfigError, match="cannot be the name of a site"):
        SyntheticConfig(sites={name: ("liver",)})


def test_a_site_without_a_structure_is_refused():
    with pytest.raises(ConfigError, match="annotates no structure"):
        SyntheticConfig(sites={"a": ()})


@pytest.mark.parametrize("wrong", [{"test": -1}, {"shape": (8, 52, 40)}, {"variation": -0.1}, {"sead": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        SyntheticConfig(**wrong)


def test_an_empty_cohort_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="at least one case"):
        make_cohort(tmp_path, SyntheticConfig(sites={}, unlabelled=0, validation=0, test=0))
