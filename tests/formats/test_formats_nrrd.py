"""NRRD and MetaImage: SimpleITK's LPS on the outside, RAS on the inside."""

from __future__ import annotations

import ast
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from labelwise import formats
from labelwise.errors import DataError
from labelwise.formats import read_geometry, read_image, read_labels, write_labels

SUFFIXES = [".nrrd", ".mha", ".mhd", ".nhdr"]
DIRECTIONS = [
    np.eye(3),
    np.diag((-1, -1, 1)),
    np.eye(3)[[1, 2, 0]],
    Rotation.from_euler("xyz", (10, -20, 35), True).as_matrix(),
]


def numbered(shape=(4, 5, 6), dtype=np.uint8) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def save(path: Path, stored: np.ndarray, direction=None, spacing=(1, 2, 3), origin=(10, 20, 30)) -> Path:
    """(I, J, K) array -> file."""
    image = SimpleITK.GetImageFromArray(stored.T)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection((np.eye(3) if direction is None else direction).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_convention_lps_of_itk_becomes_ras(tmp_path, suffix):
    """An LPS file is turned about z: its first voxel, at the right and front, is the last along x and y."""
    path = save(tmp_path / f"a{suffix}", numbered())
    image = read_image([path])
    assert np.array_equal(image.data[0], numbered()[::-1, ::-1])
    assert image.spacing_mm == (1, 2, 3)
    # Voxel (3, 4, 0) is ITK's first, at LPS (10, 20, 30).
    assert np.allclose(image.affine @ (3, 4, 0, 1), (-10, -20, 30, 1))
    assert np.allclose(read_geometry(path).affine, image.affine)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_scan_as_nifti_and_as_nrrd_is_the_same_volume(tmp_path, direction):
    nrrd, nifti = tmp_path / "a.nrrd", tmp_path / "a.nii.gz"
    for path in (nrrd, nifti):  # ITK writes both
        save(path, numbered(), direction)
    ours, theirs = read_labels(nrrd), read_labels(nifti)
    assert np.array_equal(ours.data, theirs.data)
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_predictions_are_nifti_in_the_axis_order_of_the_source(tmp_path, direction):
    path = save(tmp_path / "a.mha", numbered(), direction)
    write_labels(tmp_path / "a.nii.gz", read_labels(path), like=path)
    written = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), numbered())
    # The physical place of every voxel, told by ITK from both files.
    source, result = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    for index in ((0, 0, 0), (3, 4, 5)):
        expected = source.TransformIndexToPhysicalPoint(index)
        assert np.allclose(result.TransformIndexToPhysicalPoint(index), expected, atol=1e-4)


def test_one_frame_is_dropped_and_more_are_refused(tmp_path):
    for frames in (1, 2):
        image = SimpleITK.GetImageFromArray(np.zeros((frames, 6, 5, 4), np.uint8), isVector=False)
        SimpleITK.WriteImage(image, str(tmp_path / f"{frames}.nrrd"))
    assert read_image([tmp_path / "1.nrrd"]).shape == (4, 5, 6)
    with pytest.raises(DataError, match="several frames"):
        read_image([tmp_path / "2.nrrd"])
    SimpleITK.WriteImage(SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "rgb.mha"))
    with pytest.raises(DataError, match="several frames or channels"):
        read_image([tmp_path / "rgb.mha"])


def test_flat_images_are_one_slice(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(numbered((5, 4))), str(tmp_path / "a.mha"))
    assert read_image([tmp_path / "a.mha"]).shape == (4, 5, 1)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("part", [0, 0.05, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path, suffix, part):
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"(?s)truncated or damaged.*a{suffix}"):
        read_image([path])


def test_a_damaged_stream_or_header_neither_hangs_nor_ends_the_process(tmp_path):
    """SimpleITK 2.5 alone waits for ever on the damaged stream, and dies of the header."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
    content = save(tmp_path / "a.mha", noise).read_bytes()
    for wrong in (content[:-300] + b"nan" + content[-297:], content.replace(b"NDims = 3", b"NDims = 999993")):
        (tmp_path / "a.mha").write_bytes(wrong)
        with pytest.raises(DataError, match="truncated or damaged"):
            read_image([tmp_path / "a.mha"])


def test_a_header_that_promises_gigabytes_is_refused_before_anything_is_allocated(tmp_path):
    path = save(tmp_path / "a.nrrd", numbered())
    path.write_bytes(path.read_bytes().replace(b"sizes: 4 5 6", b"sizes: 9000 9000 9000"))
    with pytest.raises(DataError, match="too short"):
        read_image([path])


def test_voxels_that_are_not_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="not numbers"):
        read_image([save(tmp_path / "a.mha", np.full((3, 3, 3), np.nan))])


def test_simpleitk_is_imported_only_when_such_a_file_is_read():
    """It takes half a second, so the package must not import the one module that needs it."""
    tree = ast.parse(Path(formats.__file__).read_text(encoding="utf-8"))
    imported = [
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert "nifti" in imported
    assert "nrrd" not in imported


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        ("a.mhd", "NDims = 3\r\nElementDataFile = x 1.raw\r\n", ["x 1.raw"]),
        ("a.mhd", "ElementDataFile = LIST\nx 1.raw\ny2.raw\ngone.raw\n", ["x 1.raw", "y2.raw"]),
        ("a.mhd", "ElementDataFile = y%d.raw 1 2 1\n", ["y1.raw", "y2.raw"]),
        ("a.nhdr", "NRRD0004\ntype: short\ndata file: y1.raw\n", ["y1.raw"]),
        ("a.nhdr", "NRRD0004\ndatafile: LIST\ny1.raw\ny2.raw\n", ["y1.raw", "y2.raw"]),
        ("a.nhdr", "NRRD0004\ntype: short\n", []),
        ("a.nrrd", "NRRD0004\ndata file: y1.raw\n", []),
    ],
)
def test_the_files_of_a_scan_are_found_by_its_header(
    tmp_path: Path, name: str, header: str, expected: list[str]
):
    for file in ("x 1.raw", "y1.raw", "y2.raw"):
        (tmp_path / file).touch()
    (tmp_path / name).write_bytes(header.encode())
    assert formats.files_of(tmp_path / name) == [tmp_path / name, *(tmp_path / file for file in expected)]
