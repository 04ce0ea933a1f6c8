"""NIfTI in and out: axes, units, header fields, values, and everything that is refused."""

from __future__ import annotations

import errno
import gzip
import json
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.spatial.transform import Rotation

from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.formats import read_geometry, read_image, read_labels, stem, suffix, write_image, write_labels
from labelwise.types import Volume

AXIS_CODES = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for signs in product((0, 1), repeat=3)
]
RAS = axcodes2ornt("RAS")


def save(path: Path, data, affine=None, *, kind=nibabel.Nifti1Image, **fields) -> Path:
    image = kind(data, np.eye(4) if affine is None else affine)
    header = image.header.copy()
    for name, value in fields.items():
        header[name] = value
    nibabel.save(kind(data, None, header), path)
    return path


def turned(labels: np.ndarray, affine: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """RAS labels and affine as a scanner with another axis order would have stored them (by nibabel)."""
    change = ornt_transform(RAS, axcodes2ornt(code))
    return apply_orientation(labels, change), affine @ inv_ornt_aff(change, labels.shape)


def oblique(degrees: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (-31, 17, 250)
    return affine


def numbered(shape=(4, 5, 6), dtype=np.uint8) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_convention_arrays_grow_to_the_right_front_and_top(tmp_path):
    """The first voxel of an LPI file, at the right, front and top, becomes the last on every axis."""
    stored = np.zeros((3, 4, 5), np.int16)
    stored[0, 0, 0] = 7
    path = save(tmp_path / "lpi.nii.gz", stored, np.diag((-1.0, -1.0, -1.0, 1.0)))
    image = read_image([path])
    assert image.data[0, -1, -1, -1] == 7
    assert np.allclose(image.affine, [[1, 0, 0, -2], [0, 1, 0, -3], [0, 0, 1, -4], [0, 0, 0, 1]])


@pytest.mark.parametrize("code", AXIS_CODES)
def test_labels_survive_the_way_in_and_out_in_every_axis_order(tmp_path, code):
    labels, affine = numbered(), oblique((7, -11, 5), (0.7, 1.3, 5))
    stored, stored_affine = turned(labels, affine, code)
    path = save(tmp_path / "source.nii.gz", stored, stored_affine)

    volume = read_labels(path)
    assert np.array_equal(volume.data, labels)
    assert np.allclose(volume.affine, affine, atol=1e-4)
    geometry = read_geometry(path)
    assert geometry.shape == labels.shape
    assert np.allclose(geometry.affine, volume.affine)

    write_labels(tmp_path / "result.nii.gz", volume, like=path)
    result, source = nibabel.load(tmp_path / "result.nii.gz"), nibabel.load(path)
    assert np.array_equal(np.asanyarray(result.dataobj), stored)
    assert np.array_equal(result.affine, source.affine)
    assert nibabel.aff2axcodes(result.affine) == tuple(code)


@settings(max_examples=40, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.3, 0.8, 1.0, 2.5, 10.0])] * 3),
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 4)]),
)
def test_oblique_and_anisotropic_grids_come_back_bit_by_bit(tmp_path_factory, degrees, spacing, codes):
    folder = tmp_path_factory.mktemp("oblique")
    image = nibabel.Nifti1Image(numbered(), None)
    image.set_qform(oblique(degrees, spacing), code=codes[0])
    image.set_sform(oblique(degrees, spacing), code=codes[1])
    nibabel.save(image, folder / "source.nii")

    volume = read_labels(folder / "source.nii")
    rotation = volume.affine[:3, :3] / volume.spacing_mm
    others = [
        np.abs(np.trace(rotation[:, list(order)] * signs))
        for order in permutations(range(3))
        for signs in product((-1, 1), repeat=3)
    ]
    assert np.trace(rotation) >= max(others) - 1e-5, "another axis order would be closer to RAS+"
    write_labels(folder / "result.nii", volume, like=folder / "source.nii")

    source, result = nibabel.load(folder / "source.nii"), nibabel.load(folder / "result.nii")
    assert np.array_equal(np.asanyarray(result.dataobj), numbered())
    for field in (
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
    ):
        assert np.array_equal(result.header[field], source.header[field]), field
    assert np.array_equal(result.header["pixdim"][:4], source.header["pixdim"][:4])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_both_versions_and_byte_orders_are_read_and_restored(tmp_path, kind, byte_order):
    header = kind.header_class(endianness=byte_order)
    header.set_data_dtype(np.dtype(byte_order + "i2"))
    nibabel.save(kind(numbered(dtype=np.int16), np.diag((-2.0, 3, 4, 1)), header), tmp_path / "a.nii.gz")
    volume = read_labels(tmp_path / "a.nii.gz")
    assert volume.data.dtype == np.dtype("=i2")
    assert np.array_equal(volume.data, numbered()[::-1])
    write_labels(tmp_path / "b.nii.gz", volume, like=tmp_path / "a.nii.gz")
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert type(written) is kind
    assert np.array_equal(np.asanyarray(written.dataobj), numbered())


def test_files_without_orientation_codes_keep_having_none(tmp_path):
    path = save(tmp_path / "a.nii", numbered(), qform_code=0, sform_code=0)
    assert np.allclose(read_geometry(path).affine, nibabel.as_closest_canonical(nibabel.load(path)).affine)
    write_labels(tmp_path / "b.nii", read_labels(path), like=path)
    header = nibabel.load(tmp_path / "b.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 0)


def test_slope_and_intercept_turn_stored_numbers_into_intensities(tmp_path):
    path = save(tmp_path / "ct.nii.gz", numbered(dtype=np.uint16))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = np.array([2, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(gzip.compress(bytes(content)))
    image = read_image([path])
    assert image.data.dtype == np.float32
    assert np.array_equal(image.data[0], numbered(dtype=np.float32) * 2 - 1024)


def test_convention_lengths_are_in_millimetres_whatever_the_header_counts_in(tmp_path):
    path = save(tmp_path / "micro.nii", numbered(), np.diag((500.0, 500, 2000, 1)), xyzt_units=3)
    assert read_image([path]).spacing_mm == pytest.approx((0.5, 0.5, 2))
    write_labels(tmp_path / "result.nii", read_labels(path), like=path)
    assert read_geometry(tmp_path / "result.nii").spacing_mm == pytest.approx((0.5, 0.5, 2))


def test_a_single_frame_is_dropped_and_a_flat_image_is_one_slice(tmp_path):
    assert read_image([save(tmp_path / "a.nii", numbered()[..., None])]).shape == (4, 5, 6)
    assert read_image([save(tmp_path / "b.nii", numbered((4, 5)))]).shape == (4, 5, 1)


def test_modalities_of_one_grid_become_channels_in_their_order(tmp_path):
    almost = np.eye(4)
    almost[0, 3] = 1e-3  # rounding of another tool
    first, second = save(tmp_path / "a.nii", numbered()), save(tmp_path / "b.nii", numbered() * 0, almost)
    image = read_image([first, second])
    assert image.data.shape == (2, 4, 5, 6)
    assert np.array_equal(image.data[0], numbered())


@pytest.mark.parametrize(("shape", "shift"), [((4, 5, 6), 0.5), ((4, 5, 7), 0)])
def test_modalities_on_different_grids_are_refused_with_both_names(tmp_path, shape, shift):
    moved = np.eye(4)
    moved[2, 3] = shift
    paths = [
        save(tmp_path / "t1.nii", numbered()),
        save(tmp_path / "t2.nii", np.zeros(shape, np.uint8), moved),
    ]
    with pytest.raises(DataError, match=r"(?s)different grids.*t1.nii and .*t2.nii.*resample"):
        read_image(paths)


def test_labels_are_one_byte_and_two_only_above_255(tmp_path):
    for top, dtype in ((255, np.uint8), (256, np.uint16)):
        labels = np.zeros((3, 3, 3), np.int64)
        labels[1, 1, 1] = top
        write_labels(tmp_path / "a.nii.gz", Volume(labels, np.eye(4)))
        written = read_labels(tmp_path / "a.nii.gz")
        assert written.data.dtype == dtype
        assert np.array_equal(written.data, labels)


@pytest.mark.parametrize(
    "labels", [np.full((2, 2, 2), -1), np.full((2, 2, 2), 70000), np.full((2, 2, 2), 0.5)]
)
def test_labels_that_do_not_fit_are_not_written(tmp_path, labels):
    with pytest.raises(DataError, match="cannot be written"):
        write_labels(tmp_path / "a.nii.gz", Volume(labels, np.eye(4)))
    assert not list(tmp_path.iterdir())


def test_class_names_travel_in_the_header(tmp_path):
    names = ("background", "Leber", "vésicule biliaire")
    write_labels(tmp_path / "a.nii.gz", Volume(numbered(), np.eye(4)), names=names)
    image = nibabel.load(tmp_path / "a.nii.gz")
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    assert json.loads(extension.text) == {"classes": {"0": names[0], "1": names[1], "2": names[2]}}
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").data, numbered())


def test_the_same_labels_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_labels(tmp_path / name / "labels.nii.gz", Volume(numbered(), np.eye(4)))
    assert (tmp_path / "a/labels.nii.gz").read_bytes() == (tmp_path / "b/labels.nii.gz").read_bytes()


def test_labels_of_another_grid_are_not_written_as_if_they_belonged_to_the_image(tmp_path):
    path = save(tmp_path / "image.nii", numbered())
    moved = np.eye(4)
    moved[0, 3] = 3
    for wrong in (Volume(numbered((4, 5, 7)), np.eye(4)), Volume(numbered(), moved)):
        with pytest.raises(DataError, match="grid of the image"):
            write_labels(tmp_path / "result.nii", wrong, like=path)
    assert not (tmp_path / "result.nii").exists()


def test_an_image_comes_back_as_it_was_written(tmp_path):
    for dtype in (np.float32, np.int16):
        image = Volume(numbered(dtype=dtype)[None], oblique((3, 2, 1), (1, 2, 3)))
        write_image(tmp_path / "a.nii.gz", image)
        back = read_image([tmp_path / "a.nii.gz"])
        assert np.array_equal(back.data, image.data)
        assert np.allclose(back.affine, image.affine, atol=1e-5)
        assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == dtype
    with pytest.raises(DataError, match="one channel"):
        write_image(tmp_path / "a.nii.gz", Volume(np.zeros((2, 3, 3, 3)), np.eye(4)))


def test_only_nifti_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"\.nii\.gz"):
        write_labels(tmp_path / "a.mha", Volume(numbered(), np.eye(4)))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def write_half(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "a.nii.gz"
    target.write_bytes(b"precious")
    monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", write_half)
    with pytest.raises(ResourceError, match="disk is full"):
        write_labels(target, Volume(numbered(), np.eye(4)))
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_labels_too_large_for_an_integer_are_refused(tmp_path):
    with pytest.raises(DataError, match="not whole numbers"):
        read_labels(save(tmp_path / "a.nii", np.full((2, 3, 4), 2.0**31, np.float32)))


def test_whole_numbers_stored_as_floats_are_labels_and_fractions_are_not(tmp_path):
    labels = read_labels(save(tmp_path / "a.nii", numbered(dtype=np.float32)))
    assert labels.data.dtype == np.int32
    assert np.array_equal(labels.data, numbered())
    with pytest.raises(DataError, match=r"(?s)not whole numbers.*0\.25.*nearest"):
        read_labels(save(tmp_path / "b.nii", numbered(dtype=np.float32) / 4))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_numbers_are_refused(tmp_path, bad):
    data = np.zeros((4, 4, 4))
    data[1, 2, 3] = bad
    path = save(tmp_path / "a.nii", data)
    with pytest.raises(DataError, match=r"(?s)not numbers.*a\.nii.*of 64 voxels.*do"):
        read_image([path])
    with pytest.raises(DataError, match=r"not numbers|not whole"):
        read_labels(path)


def test_several_frames_are_refused(tmp_path):
    for shape in ((4, 4, 4, 3), (4, 4, 4, 1, 3)):
        with pytest.raises(DataError, match=r"(?s)several frames.*each frame"):
            read_geometry(save(tmp_path / "a.nii", np.zeros(shape, np.uint8)))


def test_colour_images_are_refused(tmp_path):
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="not plain numbers"):
        read_image([save(tmp_path / "a.nii", rgb)])


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (1, 1, 0, 0), (np.nan, 0, 0, 0), (1e30, 0, 0, 0)])
def test_an_affine_that_places_no_voxel_is_refused(tmp_path, row):
    path = save(
        tmp_path / "a.nii",
        numbered(),
        sform_code=1,
        srow_x=row,
        srow_y=(1, 1, 0, 0) if row[1] else (0, 1, 0, 0),
    )
    for read in (read_geometry, read_labels):
        with pytest.raises(DataError, match=r"(?s)affine.*a\.nii.*do"):
            read(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, name, part):
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
    path = save(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=rf"(?s)truncated|not a NIfTI.*{name}"):
        read_image([path])


def test_one_flipped_bit_in_a_compressed_file_is_found_by_the_checksum(tmp_path):
    path = save(
        tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 255, (16, 16, 16)).astype(np.uint8)
    )
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image([path])


def test_a_header_that_promises_terabytes_is_refused_before_anything_is_allocated(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, numbered())
        opened = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        content = bytearray(opened)
        content[42:48] = np.array([30000] * 3, "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(content)) if name.endswith(".gz") else bytes(content))
        with pytest.raises(DataError, match=r"(?s)too short.*27,000,000,000,352 bytes|too short.*expected"):
            read_geometry(path)


def test_missing_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image([tmp_path / "a.nii.gz"])
    (tmp_path / "a.xyz").write_text("no scan")
    with pytest.raises(DataError, match=r"(?s)unknown file format.*\.nii\.gz.*DICOM"):
        read_image([tmp_path / "a.xyz"])
    (tmp_path / "text.nii.gz").write_text("this is text")
    with pytest.raises(DataError, match="truncated or damaged"):
        read_image([tmp_path / "text.nii.gz"])


def test_names_of_files():
    assert suffix("a/B.NII.GZ") == ".nii.gz"
    assert suffix("scan.txt") == ""
    assert stem("a/liver_001.nii.gz") == "liver_001"
    assert stem("a/1.2.3.h5") == "1.2.3"
    assert stem("noformat.txt") == "noformat.txt"


@pytest.mark.parametrize("code", AXIS_CODES[::7])
def test_reading_agrees_with_the_canonical_image_of_nibabel(tmp_path, code):
    stored, affine = turned(numbered(dtype=np.int16), oblique((20, 8, -12), (1, 2, 3)), code)
    path = save(tmp_path / "a.nii", stored, affine)
    ours, theirs = read_image([path]), nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(ours.data[0], theirs.get_fdata(dtype=np.float32))
    assert np.allclose(ours.affine, theirs.affine)
