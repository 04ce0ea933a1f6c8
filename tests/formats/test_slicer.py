"""Segmentations of 3D Slicer (.seg.nrrd): names, colours, layers, and their place in the world."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_labels import NAMES, affines, blobs
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.errors import DataError
from labelwise.formats import Layout, read_geometry, read_labels, segment_names, write_image, write_labels
from labelwise.types import Volume

SEGMENTS = Layout(segments=NAMES[1:])


def by_slicer(path: Path, layers: np.ndarray, facts: dict[str, str]) -> Path:
    """(layers, I, J, K) as Slicer stores them: the layers are the components of a voxel."""
    image = SimpleITK.GetImageFromArray(np.moveaxis(layers, 0, -1).transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing((1, 2, 3))
    for key, value in facts.items():
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


@settings(max_examples=25, deadline=None, derandomize=True)
@given(affine=affines(), seed=st.integers(0, 99))
def test_labels_lie_where_the_scan_lies_for_an_independent_reader(affine, seed):
    with tempfile.TemporaryDirectory() as folder:
        scan, file = Path(folder) / "scan.nii.gz", Path(folder) / "a.seg.nrrd"
        write_image(scan, Volume(np.zeros((1, 5, 6, 7), np.float32), affine))  # any order of axes
        grid = read_geometry(scan)
        labels = Volume(blobs(grid.shape, seed), grid.affine)
        write_labels(file, labels, like=scan, names=NAMES)
        assert np.array_equal(read_labels(file, SEGMENTS).data, labels.data)
        assert read_geometry(file).matches(grid)
        written, original = SimpleITK.ReadImage(str(file)), SimpleITK.ReadImage(str(scan))
        corners = [(0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6)]
        for corner in corners:
            assert np.allclose(
                written.TransformIndexToPhysicalPoint(corner),
                original.TransformIndexToPhysicalPoint(corner),
                atol=1e-3,
            )
        write_labels(Path(folder) / "b.nii.gz", labels, like=scan)
        nifti = SimpleITK.ReadImage(str(Path(folder) / "b.nii.gz"))
        assert np.array_equal(SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(nifti))


def test_the_header_says_what_slicer_asks_for(tmp_path):
    file = tmp_path / "a.seg.nrrd"
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:3, 2:5, 4] = 2
    write_labels(file, Volume(labels, np.diag((-1.0, -1, 2, 1))), names=NAMES)
    image = SimpleITK.ReadImage(str(file))
    facts = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert facts["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert facts["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    names = [facts[f"Segment{number}_Name"] for number in range(3)]
    assert names == list(NAMES[1:])
    assert [facts[f"Segment{number}_LabelValue"] for number in range(3)] == ["1", "2", "3"]
    assert len({facts[f"Segment{number}_Color"] for number in range(3)}) == 3
    assert all(0 <= float(part) <= 1 for part in facts["Segment1_Color"].split())
    assert "SCT^10200004^Liver" in facts["Segment0_Tags"]
    stored = SimpleITK.GetArrayFromImage(image).T
    (i0, i1), (j0, j1), (k0, k1) = np.reshape(facts["Segment1_Extent"].split(), (3, 2)).astype(int)
    assert (stored[i0 : i1 + 1, j0 : j1 + 1, k0 : k1 + 1] == 2).all()
    assert (stored == 2).sum() == (i1 - i0 + 1) * (j1 - j0 + 1) * (k1 - k0 + 1)


def test_overlapping_segments_in_layers(tmp_path):
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1:4], layers[0, 0], layers[1, 2:, 2:] = 1, 7, 1
    facts = {
        **{"Segment0_Name": "liver", "Segment0_LabelValue": "1", "Segment0_Layer": "0"},
        **{"Segment1_Name": "tumour", "Segment1_LabelValue": "1", "Segment1_Layer": "1"},
        **{"Segment2_Name": "spleen", "Segment2_LabelValue": "7", "Segment2_Layer": "0"},
    }
    file = by_slicer(tmp_path / "a.seg.nrrd", layers, facts)
    assert segment_names(file) == ("liver", "tumour", "spleen")
    found = read_labels(file, Layout(segments=("spleen", "liver", "tumour"))).data[::-1, ::-1]  # LPS -> RAS
    expected = np.select([layers[1] == 1, layers[0] == 1, layers[0] == 7], [3, 2, 1], 0)
    assert np.array_equal(found, expected)
    found = read_labels(file, Layout(segments=("tumour", "liver"))).data[::-1, ::-1]
    assert (found == 2).sum() == (layers[0] == 1).sum(), "the later name covers the earlier"


def test_old_files_keep_each_segment_in_a_layer_of_its_own(tmp_path):
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 0], layers[1, 1] = 1, 1
    file = by_slicer(tmp_path / "a.seg.nrrd", layers, {"Segment0_Name": "liver", "Segment1_Name": "spleen"})
    found = read_labels(file, Layout(segments=("liver", "spleen"))).data[::-1, ::-1]
    assert np.array_equal(found, layers[0] + 2 * layers[1])


def test_files_without_the_segments_or_their_layer_are_refused(tmp_path):
    layers = np.ones((2, 4, 5, 6), np.uint8)
    file = by_slicer(tmp_path / "a.seg.nrrd", layers, {"Segment0_Name": "liver", "Segment0_Layer": "5"})
    with pytest.raises(DataError, match="damaged"):
        read_labels(file, Layout(segments=("liver",)))
    with pytest.raises(DataError, match="none of the segments"):
        read_labels(file, Layout(segments=("spleen",)))
    plain = tmp_path / "plain.nrrd"
    write_labels(plain, Volume(layers[0], np.eye(4)))
    assert segment_names(plain) == ()
    assert np.array_equal(read_labels(plain).data, layers[0])
    with pytest.raises(DataError, match="none of the segments"):
        read_labels(plain, Layout(segments=("liver",)))
    with pytest.raises(DataError, match="no name"):
        write_labels(tmp_path / "b.seg.nrrd", Volume(layers[0] * 3, np.eye(4)), names=NAMES[:2])
    assert not (tmp_path / "b.seg.nrrd").exists()
