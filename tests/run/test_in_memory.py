"""A loaded model in a notebook: the command's answers in memory, for whatever form a scan comes in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch import nn

from labelwise import ConfigError, DataError, Volume, load_model, run
from labelwise.formats import read_image, write_labels


@pytest.fixture(scope="module")
def scans(tiny_cohort, tmp_path_factory):
    """Two test scans as hospitals store them: one runs left, down and back and has its axes in another order."""
    folder = tmp_path_factory.mktemp("scans")
    for name, order in (("test_000", "RAS"), ("test_001", "IPL")):
        image = nibabel.load(tiny_cohort / "images" / f"{name}.nii.gz")
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(order)))
        nibabel.save(image.as_reoriented(turn), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def written(tiny_run, scans, tmp_path_factory):
    """What the command writes for these scans."""
    folder = tmp_path_factory.mktemp("written")
    assert not run.predict(tiny_run, scans, folder, device="cpu").failed
    return folder


@pytest.fixture(scope="module")
def model(tiny_run):
    return load_model(tiny_run, "cpu")


NAMES = ("test_000", "test_001")


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_an_in_memory_prediction_is_the_file_of_the_command_bit_for_bit(
    model, tiny_run, scans, tmp_path, ending
):
    kind = {".nii.gz": "nifti", ".seg.nrrd": "nrrd"}[ending]
    run.predict(tiny_run, scans, tmp_path / "command", device="cpu", label_format=kind)
    for name in NAMES:  # one model, many scans
        scan = scans / f"{name}.nii.gz"
        labels = model.predict(scan)
        assert len(np.unique(labels.data)) > 2
        write_labels(tmp_path / f"mine{ending}", labels, like=scan, names=model.label_space.names)
        theirs = tmp_path / "command" / f"{name}{ending}"
        assert (tmp_path / f"mine{ending}").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_an_array_gets_its_labels_in_its_own_order_of_axes(model, scans, written, name):
    image, labels = (nibabel.load(folder / f"{name}.nii.gz") for folder in (scans, written))
    found = model.predict(image.get_fdata(), affine=image.affine)
    np.testing.assert_array_equal(found.data, np.asanyarray(labels.dataobj))
    np.testing.assert_array_equal(found.affine, image.affine)
    assert found.data.flags.c_contiguous


def test_a_volume_and_an_array_with_spacing_are_the_same_scan(model, scans, written):
    image = read_image([scans / "test_000.nii.gz"])
    expected = np.asanyarray(nibabel.load(written / "test_000.nii.gz").dataobj)
    assert image.data.shape[1:] == expected.shape
    np.testing.assert_array_equal(model.predict(image).data, expected)
    np.testing.assert_array_equal(model.predict(image.data, spacing_mm=image.spacing_mm).data, expected)
    np.testing.assert_array_equal(model.predict(image.data[0], spacing_mm=image.spacing_mm).data, expected)


def test_a_scan_in_memory_is_not_changed(model, scans):
    image = read_image([scans / "test_000.nii.gz"])
    before = image.data.copy()
    image.data.flags.writeable = False
    model.predict(image)
    np.testing.assert_array_equal(image.data, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_score_of_a_scan_that_is_not_resampled_is_its_label(model, scans, name):
    own = replace(model, plan=replace(model.plan, spacing_mm=None, crop="none"))
    image = nibabel.load(scans / f"{name}.nii.gz")
    given = {"scan": image.get_fdata(), "affine": image.affine}
    scores = own.predict_scores(**given)
    assert scores.data.dtype == np.float32
    assert scores.data.shape == (5, *image.shape)
    np.testing.assert_array_equal(scores.affine, image.affine)
    np.testing.assert_array_equal(scores.data.argmax(axis=0), own.predict(**given).data)
    # Sums of float32 that were rounded once each: C + 1 roundings of at most half a unit in the last place.
    np.testing.assert_allclose(scores.data.sum(axis=0), 1, atol=6 * np.finfo(np.float32).eps)


def test_scores_come_back_to_the_grid_of_a_resampled_scan(model, scans):
    image = read_image([scans / "test_000.nii.gz"])
    scores = model.predict_scores(scans / "test_000.nii.gz")
    assert scores.shape == image.shape
    np.testing.assert_array_equal(scores.affine, image.affine)
    assert scores.data.min() >= 0
    # Interpolation weights of three axes are rounded too.
    np.testing.assert_allclose(scores.data.sum(axis=0), 1, atol=64 * np.finfo(np.float32).eps)


def test_several_threads_are_answered_one_after_the_other(model, scans, written):
    class Watched(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.inside, self.most = network, 0, 0

        def forward(self, images):
            self.inside += 1
            self.most = max(self.most, self.inside)
            scores = self.network(images)
            self.inside -= 1
            return scores

    watched = replace(model, predictor=Watched(model.predictor), _turn=threading.Lock())
    names = NAMES * 4
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: watched.predict(scans / f"{name}.nii.gz"), names))
    assert watched.predictor.most == 1
    for name, labels in zip(names, answers, strict=True):
        np.testing.assert_array_equal(labels.data, model.predict(scans / f"{name}.nii.gz").data)


ARRAY = np.zeros((8, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"scan": ARRAY}, ConfigError, "does not say where"),
        ({"scan": ARRAY, "spacing_mm": (1, 1, 1), "affine": np.eye(4)}, ConfigError, "does not say where"),
        ({"scan": ARRAY, "spacing_mm": (1, 1)}, ConfigError, "three positive"),
        ({"scan": ARRAY, "spacing_mm": (1, 1, -1)}, ConfigError, "three positive"),
        ({"scan": ARRAY, "affine": np.eye(3)}, ConfigError, r"\(4, 4\)"),
        ({"scan": ARRAY, "affine": np.zeros((4, 4))}, DataError, "singular"),
        ({"scan": ARRAY[0], "affine": np.eye(4)}, DataError, "no scan"),
        ({"scan": ARRAY[:0], "affine": np.eye(4)}, DataError, "empty"),
        ({"scan": ARRAY + np.nan, "affine": np.eye(4)}, DataError, "finite"),
        ({"scan": ARRAY.astype(complex), "affine": np.eye(4)}, DataError, "not numbers"),
        ({"scan": np.stack([ARRAY, ARRAY]), "affine": np.eye(4)}, DataError, "number of channels"),
        ({"scan": Volume(ARRAY, np.eye(4)), "affine": np.eye(4)}, ConfigError, "belong to an array"),
        ({"scan": ARRAY, "affine": np.eye(4), "intensity": "mr"}, ConfigError, "no intensities 'mr'"),
        ({"scan": "nowhere.nii.gz"}, DataError, "nowhere.nii.gz"),
        ({"scan": []}, DataError, "at least one image"),
        ({"scan": None}, ConfigError, "no scan"),
        ({"scan": [None]}, ConfigError, "type builtins.NoneType"),
        ({"scan": ["scan.nii.gz", 3.5]}, ConfigError, "type builtins.float"),
        ({"scan": torch.zeros(4, 4, 4), "affine": np.eye(4)}, ConfigError, "type torch.Tensor"),
        ({"scan": nibabel.Nifti1Image(ARRAY, np.eye(4))}, ConfigError, "type nibabel.nifti1.Nifti1Image"),
    ],
)
def test_what_is_no_scan_is_refused(model, given, kind, says):
    for ask in (model.predict, model.predict_scores):
        with pytest.raises(kind, match=says):
            ask(**given)


def test_a_model_says_what_it_is_without_its_weights(model):
    assert repr(model) == "Model('first', supervised, liver, spleen, kidneys, pancreas, on cpu)"


def test_the_device_of_a_model_is_chosen_as_on_the_command_line(tiny_run):
    assert load_model(tiny_run).device == load_model(tiny_run, "auto").device
    assert load_model(tiny_run, torch.device("cpu")).device.type == "cpu"
