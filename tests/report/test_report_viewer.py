import gzip

import nibabel
import numpy as np
import pytest

from labelwise.report import viewer
from labelwise.report.viewer import viewer_case
from labelwise.types import IGNORE, LabelSpace, Volume

SPACE = LabelSpace(("background", "liver", "spleen"))


def opened(data):
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), image.affine


def seen(shape=(80, 70, 60), affine=None, labels=None, **options):
    voxels = np.linspace(0, 1, np.prod(shape), dtype=np.float32).reshape(1, *shape)
    image = Volume(voxels, np.eye(4) if affine is None else affine)
    labels = np.zeros(shape, np.uint8) if labels is None else labels
    options = {"label_space": SPACE, "annotated": ("spleen",), **options}
    return viewer_case("case7", image, labels, {"run": labels}, **options)


def box(shape=(80, 70, 60)):
    labels = np.zeros(shape, np.uint8)
    labels[40:50, 30:40, 20:30] = 2
    return labels


def test_scan_and_maps_lie_on_one_grid_at_the_place_of_the_scan():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-100, 20, 5)
    shown = seen(affine=affine, labels=box())
    scan, placed = opened(shown.scan)
    reference, also = opened(shown.maps["reference"])
    assert scan.shape == reference.shape
    np.testing.assert_allclose(placed, also)
    # The middle of the box is where it was, in mm.
    inside = np.argwhere(reference == 2).mean(axis=0)
    np.testing.assert_allclose(placed @ [*inside, 1], affine @ [44.5, 34.5, 24.5, 1], atol=1e-3)
    np.testing.assert_allclose(shown.centre, (inside + 0.5) / reference.shape, atol=1e-6)


def test_what_lies_far_from_all_structures_is_cut_off():
    shown = seen(labels=box())
    assert opened(shown.scan)[0].shape == (10 + 25 + 25, 10 + 25 + 25, 10 + 20 + 25)
    assert shown.note == "Voxels of 1 x 1 x 1 mm, cut out."
    assert opened(seen().scan)[0].shape == (80, 70, 60)


def test_large_scans_are_thinned_until_the_page_can_hold_them(monkeypatch):
    monkeypatch.setattr(viewer, "SCAN_BYTES", 4 * 20_000 * 0.7)
    labels = np.ones((80, 70, 60), np.uint8)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    shown = seen(affine=affine, labels=labels, share=4)
    scan, placed = opened(shown.scan)
    assert scan.size <= 20_000
    assert scan.shape[2] == 60  # the coarsest axis is the last to be thinned
    assert "thinned" in shown.note
    # The middle of the first block.
    step = np.diag(placed)[0]
    assert placed[0, 3] == pytest.approx((step - 1) / 2)


def test_unknown_voxels_and_all_indices_survive():
    labels = box()
    labels[41] = IGNORE
    assert set(np.unique(opened(seen(labels=labels).maps["reference"])[0])) == {0, 2, IGNORE}


def test_the_case_knows_colours_and_what_is_annotated():
    shown = seen(labels=box())
    assert list(shown.colours) == ["liver", "spleen"]
    assert shown.annotated == ("spleen",)
    assert list(shown.maps) == ["reference", "run"]


def test_equal_cases_give_equal_bytes():
    assert seen(labels=box()) == seen(labels=box())
