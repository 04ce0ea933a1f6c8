"""The .h5 layouts of the research benchmarks."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from labelwise.errors import ConfigError, DataError
from labelwise.formats import Layout, read_geometry, read_image, read_labels, write_labels


def save(path: Path, **arrays) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")
    return path


def numbered(shape, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_left_atrium_layout_is_x_y_z_and_takes_its_spacing_from_the_layout(tmp_path):
    path = save(tmp_path / "mri_norm2.h5", image=numbered((4, 5, 6)), label=numbered((4, 5, 6), np.uint8))
    layout = Layout(spacing_mm=(0.625, 0.625, 1.25))
    image, labels = read_image([path], layout), read_labels(path, layout)
    assert np.array_equal(image.data[0], numbered((4, 5, 6)))
    assert np.array_equal(labels.data, numbered((4, 5, 6), np.uint8))
    assert np.array_equal(image.affine, np.diag((0.625, 0.625, 1.25, 1)))
    assert read_geometry(path, layout).matches(read_geometry(path, layout))
    assert read_geometry(path, layout).shape == (4, 5, 6)


def test_convention_spacing_is_along_x_y_z_also_where_slices_come_first(tmp_path):
    path = save(
        tmp_path / "patient001_frame01.h5", image=numbered((3, 5, 6)), label=numbered((3, 5, 6), np.uint8)
    )
    image = read_image([path], Layout(axes="zyx", spacing_mm=(1.5, 1.6, 10)))
    assert image.data.shape == (1, 6, 5, 3)
    assert image.spacing_mm == (1.5, 1.6, 10)
    assert np.array_equal(image.data[0], numbered((3, 5, 6)).transpose(2, 1, 0))
    assert image.data.flags.c_contiguous


def test_a_slice_file_is_a_volume_of_one_slice(tmp_path):
    path = save(tmp_path / "slice.h5", image=numbered((5, 6)), scribble=numbered((5, 6), np.uint16))
    layout = Layout(axes="zyx", label_key="scribble")
    assert np.array_equal(read_image([path], layout).data[0, ..., 0], numbered((5, 6)).T)
    assert read_labels(path, layout).data.dtype == np.uint16


def test_without_a_spacing_lengths_are_voxels(tmp_path):
    assert read_image([save(tmp_path / "a.h5", image=numbered((4, 5, 6)))]).spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_predictions_become_nifti_with_the_affine_of_the_read_image(tmp_path, axes):
    layout = Layout(axes=axes, spacing_mm=(1, 2, 3))
    path = save(tmp_path / "a.h5", image=numbered((4, 5, 6)), label=numbered((4, 5, 6), np.uint8))
    labels = read_labels(path, layout)
    write_labels(tmp_path / "a.nii.gz", labels, like=path, layout=layout)
    written = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), labels.data)
    assert np.array_equal(written.affine, np.diag((1, 2, 3, 1)))


def test_labels_alone_have_a_geometry_too(tmp_path):
    assert read_geometry(save(tmp_path / "a.h5", label=numbered((4, 5, 6), np.uint8))).shape == (4, 5, 6)


def test_a_missing_data_set_is_named_with_those_that_are_there(tmp_path):
    path = save(tmp_path / "a.h5", images=numbered((4, 5, 6)))
    with pytest.raises(
        DataError, match=r"(?s)no data set 'image' in the file; did you mean 'images'.*image_key"
    ):
        read_image([path])


def test_arrays_that_are_no_image_are_refused(tmp_path):
    for array in (numbered((2, 3, 4, 5)), np.float32(3), np.array([b"text"])):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["image"] = array
        with pytest.raises(DataError, match="not an image"):
            read_image([tmp_path / "a.h5"])


@pytest.mark.parametrize("part", [0, 0.1, 0.6, 0.95])
def test_truncated_files_are_named(tmp_path, part):
    path = save(tmp_path / "a.h5", image=np.random.default_rng(0).random((20, 20, 20)))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(DataError, match=r"(?s)truncated or damaged.*a\.h5"):
        read_image([path])


def test_damaged_chunks_are_named(tmp_path):
    path = save(tmp_path / "a.h5", image=np.random.default_rng(0).random((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[-20000:-10000] = bytes(10000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.h5"):
        read_image([path])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_numbers_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match="not numbers"):
        read_image([save(tmp_path / "a.h5", image=np.full((3, 3, 3), bad))])


def test_a_layout_with_an_impossible_spacing_is_refused():
    with pytest.raises(ConfigError, match="spacing_mm"):
        Layout(spacing_mm=(1, 0, 1))


@pytest.mark.real_data
def test_the_left_atrium_cohort_is_read_as_published(real_data):
    files = sorted((real_data / "la2018").rglob("mri_norm2.h5"))[:3]
    assert files
    for file in files:
        image, labels = read_image([file], Layout(spacing_mm=(0.625,) * 3)), read_labels(file)
        assert image.shape == labels.shape
        assert image.shape[2] == 88
        assert set(np.unique(labels.data)) == {0, 1}


@pytest.mark.real_data
def test_the_cardiac_cohort_is_read_slices_last(real_data):
    files = sorted((real_data / "acdc").rglob("*.h5"))[:3]
    assert files
    for file in files:
        image = read_image([file], Layout(axes="zyx"))
        assert image.shape[2] < 20 < min(image.shape[:2])
        assert set(np.unique(read_labels(file, Layout(axes="zyx")).data)) <= {0, 1, 2, 3}
