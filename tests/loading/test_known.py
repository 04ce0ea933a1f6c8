"""What a batch says of classes that are annotated in a part of a scan: for each voxel what is known there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from labelwise.cohort.manifest import Manifest
from labelwise.errors import DataError
from labelwise.evaluate.overlap import dice_per_class
from labelwise.loading.augment import AugmentConfig
from labelwise.loading.known import KnownLabels, meaning_of, references
from labelwise.loading.loader import StepDataset, batches
from labelwise.loading.prepare import prepare
from labelwise.loading.sampling import SamplingConfig
from labelwise.loading.store import Store
from labelwise.losses.partial import possible_classes
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import IGNORE, Batch, LabelSpace, Part
from stored_cohort import DATA_SETS, SPACE, UNCHANGED, label_map, make_case, make_manifest

LIVER, SPLEEN, PANCREAS = (frozenset([structure]) for structure in SPACE.structures)
SLICES = Part(LIVER, ((None, None, (3, 5)),))
BOX = Part(SPLEEN, (((4, 9), None, (2, 6)),))
PLAIN = AugmentConfig(preset="none")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> tuple[Manifest, Store]:
    """One complete case with parts, one without, and unlabelled ones."""
    folder = tmp_path_factory.mktemp("known")
    manifest = make_manifest(folder / "files")
    prepared = prepare(manifest, folder / "store", UNCHANGED, workers=1)
    first, *others = manifest.cases
    return manifest.replace_cases([replace(first, parts=(SLICES, BOX)), *others]), prepared.store


def load(manifest: Manifest, store: Store, total: int = 4, **changes) -> list[Batch]:
    sampling = SamplingConfig(patch_size=(24, 20, 18), labelled_cases=2, unlabelled_cases=1, foreground=0.0)
    settings = {"sampling": sampling, "augmentation": PLAIN, "seed": 0, "total": total, **changes}
    return list(batches(store, manifest.cases, SPACE, **settings))


def truth_of_full_1() -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) class indices, and (C, X, Y, Z) bool: the classes that each voxel can still have."""
    labels = label_map(0)
    x, _, z = np.indices(labels.shape)
    liver, spleen = (z >= 3) & (z <= 5), (x >= 4) & (x <= 9) & (z >= 2) & (z <= 6)
    given = np.where(((labels == 1) & ~liver) | ((labels == 2) & ~spleen), 0, labels)
    possible = np.stack([given == structure for structure in range(4)])
    possible[1] |= (given == 0) & ~liver
    possible[2] |= (given == 0) & ~spleen
    return given, possible


def test_a_batch_says_for_each_voxel_which_classes_are_known_there(cohort):
    given, possible = truth_of_full_1()
    seen = False
    for batch in load(*cohort):
        assert batch.annotated.shape == (3, 4, 24, 20, 18) or batch.annotated.ndim == 2
        for row, name in enumerate(batch.case_ids):
            if name == "full_1":
                inside = batch.inside[row]
                wanted = torch.from_numpy(possible).flatten(1)
                found = possible_classes(batch.labels[row : row + 1], batch.annotated[row : row + 1])[0]
                assert torch.equal(found[:, inside], wanted)
                assert torch.equal(batch.labels[row][inside], torch.from_numpy(given).long().flatten())
                assert (batch.labels[row][~inside] == IGNORE).all()
                assert batch.annotated_on_host[row] == (True,) * 4
                assert not batch.complete[row]
                seen = True
    assert seen


def test_cases_without_parts_are_as_in_a_batch_without_any(cohort):
    manifest, store = cohort
    plain = manifest.replace_cases([replace(case, parts=()) for case in manifest.cases])
    # The order of the streams is another, since a case with parts is unlabelled: each case alone.
    sampling = SamplingConfig(patch_size=(24, 20, 18), labelled_cases=3, unlabelled_cases=0, foreground=0.0)
    for one, two in zip(
        load(manifest, store, sampling=sampling), load(plain, store, sampling=sampling), strict=True
    ):
        for row, name in enumerate(one.case_ids):
            if name != "full_1":
                assert torch.equal(one.labels[row], two.labels[row])
                structures = two.annotated[row].view(-1, *[1] * (one.annotated.ndim - 2))
                assert torch.equal(one.annotated[row], structures.expand_as(one.annotated[row]))


def test_a_moved_patch_keeps_what_is_known_of_each_voxel(cohort):
    manifest, store = cohort
    given, possible = truth_of_full_1()
    flip = AugmentConfig(preset="none", mirror_axes=(2,), mirror_once=True)
    sampling = SamplingConfig(patch_size=given.shape, labelled_cases=1, unlabelled_cases=0, foreground=0.0)
    only = manifest.replace_cases(manifest.cases[:1])
    (batch,) = load(only, store, total=1, sampling=sampling, augmentation=flip)
    assert torch.equal(
        possible_classes(batch.labels, batch.annotated)[0], torch.from_numpy(possible).flip(-1)
    )


def test_left_and_right_are_swapped_in_what_is_known_too(cohort):
    manifest, store = cohort
    known = KnownLabels(manifest.cases[0], SPACE, store)
    meaning = meaning_of([known])
    swapped = meaning.swap([0], (0, 2, 1, 3))
    assert torch.equal(swapped.annotated[:, :, [0, 2, 1, 3]], meaning.annotated)


def test_labelled_patches_are_centred_where_something_is_annotated(cohort):
    manifest, store = cohort
    everything = Part(frozenset(SPACE.structures), ((None, None, (4, 4)),))
    only = manifest.replace_cases([replace(manifest.cases[0], parts=(everything,))])
    sampling = SamplingConfig(patch_size=(4, 4, 1), labelled_cases=8, unlabelled_cases=0, foreground=0.5)
    for batch in load(only, store, sampling=sampling):
        assert (batch.labels != IGNORE).all()  # 2D patches: all of them lie in slice 4
    dataset = StepDataset(store, only.cases, SPACE, sampling, PLAIN, seed=0)
    assert {int(z) for voxels in dataset.points[0].values() for z in voxels[:, 2]} == {4}


def test_scribbles_are_known_where_they_are_drawn(cohort):
    manifest, store = cohort
    only = manifest.replace_cases([replace(manifest.cases[0], parts=(Part(frozenset(SPACE.structures)),))])
    sampling = SamplingConfig(patch_size=label_map(0).shape, labelled_cases=1, unlabelled_cases=0)
    (batch,) = load(only, store, total=1, sampling=sampling)
    assert np.array_equal(batch.labels[0].numpy(), np.where(label_map(0) == 0, IGNORE, label_map(0)))
    assert batch.annotated.ndim == 2  # nothing differs from voxel to voxel


def test_on_another_grid_a_voxel_belongs_to_the_slice_that_its_centre_lies_in(tmp_path):
    case = replace(make_case(tmp_path / "files", "full_1", 0), parts=(SLICES,))
    manifest = Manifest(SPACE, DATA_SETS, (case,))
    plan = Plan(intensity={"normalised": IntensityRule("none")}, spacing_mm=(1.0, 1.0, 2.0))
    store = prepare(manifest, tmp_path / "store", plan, workers=1).store
    (_, everywhere), (structures, liver) = references(case, SPACE, store.case("full_1"))
    assert structures.tolist() == [False, True, False, False]
    assert everywhere.shape == liver.shape == (20, 18, 7)  # slices 1, 3, 5, ... of the scan
    assert [bool((liver[:, :, z] != IGNORE).any()) for z in range(7)] == [False, True, True, *[False] * 4]


def test_a_prediction_is_judged_in_the_part_of_each_class(cohort):
    manifest, store = cohort
    prediction = np.zeros_like(label_map(0))
    prediction[:, :, :6] = label_map(0)[:, :, :6]
    found = {}
    for structures, labels in references(manifest.cases[0], SPACE, store.case("full_1")):
        dice = dice_per_class(labels, prediction, 4)
        found |= {SPACE.names[index]: dice[index] for index in np.flatnonzero(structures)}
    assert found["liver"] == 1
    assert found["pancreas"] == pytest.approx(2 * 4 / (4 + 7))  # 4 of 7 slices, all over the scan


def test_a_part_beyond_the_scan_is_refused_before_the_training(cohort):
    manifest, store = cohort
    wrong = replace(manifest.cases[0], parts=(Part(LIVER, ((None, None, (3, 99)),)),))
    with pytest.raises(DataError, match="annotated beyond the scan"):
        KnownLabels(wrong, SPACE, store)


def test_too_many_different_parts_are_refused(cohort, monkeypatch):
    manifest, store = cohort
    monkeypatch.setattr("labelwise.loading.known.IGNORE", 7)
    with pytest.raises(DataError, match="too many different parts"):
        KnownLabels(manifest.cases[0], SPACE, store)


# regions that are annotated as one


REGIONS = LabelSpace(SPACE.names, (("abdomen", ("liver", "spleen")),))


@pytest.fixture(scope="module")
def with_region(tmp_path_factory) -> tuple[Manifest, Store]:
    """Of the first case, liver and spleen are known as one; what its file says of each is not."""
    folder = tmp_path_factory.mktemp("region")
    manifest = make_manifest(folder / "files")
    first, *others = manifest.cases
    cases = (replace(first, annotated=frozenset({"abdomen", "pancreas"})), *others)
    manifest = replace(manifest, label_space=REGIONS, cases=cases)
    return manifest, prepare(manifest, folder / "store", UNCHANGED, workers=1).store


@pytest.mark.parametrize("slices", ["all", "annotated"])
def test_a_voxel_of_a_region_can_be_one_of_its_classes_and_no_other_voxel_can(with_region, slices):
    manifest, store = with_region
    sampling = SamplingConfig(
        (24, 20, 18), labelled_cases=2, unlabelled_cases=1, foreground=0.5, slices=slices
    )
    labels = label_map(0)
    wanted = np.stack([labels == structure for structure in range(4)])
    wanted[1] = wanted[2] = (labels == 1) | (labels == 2)
    seen = 0
    for batch in batches(store, manifest.cases, REGIONS, sampling, PLAIN, seed=0, total=4):
        for row, name in enumerate(batch.case_ids):
            if name == "full_1":
                one = slice(row, row + 1)
                found = possible_classes(batch.labels[one], batch.annotated[one])[0]
                assert torch.equal(found[:, batch.inside[row]], torch.from_numpy(wanted).flatten(1))
                assert not bool(batch.complete[row])
                assert row in batch.unlabelled_rows
                seen += 1
    assert seen


def test_patches_are_centred_on_voxels_of_a_region_too(with_region):
    manifest, store = with_region
    points = KnownLabels(manifest.cases[0], REGIONS, store).points(store.case("full_1"))
    places = {tuple(place) for place in points[1].tolist()}
    assert places == {tuple(place) for place in np.argwhere(np.isin(label_map(0), (1, 2))).tolist()}


def test_a_region_is_no_class_to_validation(with_region):
    manifest, store = with_region
    ((annotated, labels),) = references(manifest.cases[0], REGIONS, store.case("full_1"))
    assert annotated.tolist() == [False, False, False, True]
    assert np.array_equal(labels, np.where(label_map(0) == 3, 3, 0))
