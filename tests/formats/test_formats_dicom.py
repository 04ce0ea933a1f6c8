"""DICOM series: which slices belong together, in which order, on which grid, and with which values."""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import LPS, MR, PERSON, dataset, save, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from labelwise.errors import DataError, ResourceError
from labelwise.formats import files_of, read_geometry, read_image, write_labels
from labelwise.formats.dicom import image as dicom
from labelwise.types import Volume

AFFINE = np.array([[-0.8, 0, 0, 90], [0, -0.7, 0, 80], [0, 0, 2.5, -300], [0, 0, 0, 1]])


def scan(seed: int = 0, shape: tuple[int, int, int] = (5, 6, 4), dtype: str = "int16") -> np.ndarray:
    low = -1024 if dtype == "int16" else 0
    return np.random.default_rng(seed).integers(low, 2000, shape).astype(dtype)


def by_simple_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and the affine in RAS mm of the only series of a folder, by GDCM."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = LPS @ (np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing())
    affine[:3, 3] = LPS @ image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, affine


def problem_of(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        dicom.read(folder)
    return str(caught.value)


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="labelwise")
    return lambda: caplog.text


# geometry


@st.composite
def affines(draw) -> np.ndarray:
    """Any order and direction of axes, any spacing, oblique or not; right-handed or left-handed."""
    spacing = [draw(st.sampled_from([0.5, 0.7421875, 1.0, 2.5, 5.0])) for _ in range(3)]
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * [
        draw(st.sampled_from([-1, 1])) for _ in range(3)
    ]
    if draw(st.booleans()):
        angles = [draw(st.floats(-0.7, 0.7)) for _ in range(3)]
        for first, second, angle in zip((0, 0, 1), (1, 2, 2), angles, strict=True):
            turn = np.eye(3)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            axes = turn @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = [draw(st.integers(-4000, 4000)) / 8 for _ in range(3)]
    return affine


@settings(max_examples=40, deadline=None, derandomize=True)
@given(affine=affines(), shape=st.tuples(*[st.integers(2, 5)] * 3), seed=st.integers(0, 9))
def test_voxels_and_affine_equal_those_of_an_independent_reader(affine, shape, seed):
    voxels = scan(seed, shape)
    with tempfile.TemporaryDirectory() as name:
        write_series(Path(name), voxels, affine)
        theirs, their_affine = by_simple_itk(Path(name))
        ours, grid = dicom.read(Path(name))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(grid.affine, their_affine, atol=1e-6)
    # Slices are counted along the normal of columns and rows, whichever way they were written.
    same_way = np.linalg.det(affine[:3, :3]) > 0
    np.testing.assert_array_equal(ours, voxels if same_way else voxels[:, :, ::-1])
    first = affine @ (0, 0, 0 if same_way else shape[2] - 1, 1)
    np.testing.assert_allclose(grid.affine[:3, 3], first[:3], atol=1e-6)


def test_the_sample_series_reads_as_with_simple_itk():
    folder = Path(__file__).parents[3] / "shared" / "data" / "ct_sample" / "dicom"
    if not folder.is_dir():
        pytest.skip("the sample series is not here")
    ours, grid = dicom.read(folder)
    theirs, affine = by_simple_itk(folder)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-9)
    assert ours.shape == (512, 512, 20)
    assert [series.modality for series in dicom.series_in(folder)] == ["CT"]


def test_an_image_is_ras_and_labels_return_to_the_grid_of_the_series(tmp_path):
    write_series(tmp_path / "ct", scan(), AFFINE)
    image = read_image([tmp_path / "ct"])
    assert (np.diag(image.affine)[:3] > 0).all()
    labels = Volume((image.data[0] > 0).astype(np.uint8), image.affine)
    write_labels(tmp_path / "out.nii.gz", labels, like=tmp_path / "ct")
    assert read_geometry(tmp_path / "out.nii.gz").matches(read_geometry(tmp_path / "ct"))
    np.testing.assert_array_equal(read_image([tmp_path / "out.nii.gz"]).data, labels.data[None])


def test_slices_are_sorted_by_position_and_files_follow_them(tmp_path):
    files = write_series(tmp_path, scan(), AFFINE)
    assert dicom.files_of(tmp_path) == files == dicom.files_of(files[2]) == files_of(files[0])
    assert dicom.modality(tmp_path) == dicom.modality(files[1]) == "CT"


def test_a_tilted_gantry_gives_a_sheared_affine_and_a_warning(tmp_path, warnings_of):
    affine = AFFINE.copy()
    affine[1, 2] = 1.0
    write_series(tmp_path, scan(), affine)
    voxels, grid = dicom.read(tmp_path)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-9)
    np.testing.assert_array_equal(voxels, scan())
    assert "sheared by 21.8 degrees (gantry tilt)" in warnings_of()


def test_a_missing_slice_is_counted_and_placed(tmp_path):
    files = write_series(tmp_path, scan(shape=(5, 6, 8)), AFFINE)
    files[3].unlink()
    files[4].unlink()
    files[6].unlink()
    text = problem_of(tmp_path)
    assert "3 slices are missing between -295 and -287.5 mm (slices 3 and 4)" in text
    assert "(slices 4 and 5)" in text


def test_slices_at_unequal_distances_are_refused(tmp_path):
    write_series(tmp_path / "a", scan(), AFFINE, SeriesInstanceUID="1.9")
    moved = AFFINE.copy()
    moved[2, 3] += 3 * 2.5 + 1.4
    write_series(tmp_path / "b", scan(), moved, SeriesInstanceUID="1.9")
    assert "slices at unequal distances, 1.4 to 2.5 mm" in problem_of(tmp_path)


def test_one_slice_takes_its_thickness_as_spacing(tmp_path):
    write_series(tmp_path, scan(shape=(5, 6, 1)), AFFINE)
    assert dicom.read_geometry(tmp_path).spacing_mm == pytest.approx((0.8, 0.7, 2.5))


# which files belong together


def test_a_folder_is_understood_by_opening_each_file_once(tmp_path, monkeypatch):
    files = write_series(tmp_path, scan(), np.eye(4))
    (tmp_path / "notes").write_text("no scan")
    opened: list[Path] = []
    plain = Path.open

    def counted(path: Path, *arguments, **named):
        opened.append(path)
        return plain(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", counted)
    assert len(dicom.series_in(tmp_path)) == 1
    assert sorted(opened) == sorted([*files, tmp_path / "notes"])


def test_a_file_that_is_no_dicom_is_called_so(tmp_path):
    (tmp_path / "notes").write_text("no scan")
    with pytest.raises(DataError, match="this is no DICOM file") as refused:
        dicom.modality(tmp_path / "notes")
    assert refused.value.code == "no-dicom"


def test_repeated_slices_are_kept_once_with_a_warning(tmp_path, warnings_of):
    files = write_series(tmp_path, scan(), AFFINE)
    shutil.copy(files[1], tmp_path / "copy")
    again = pydicom.dcmread(files[2])
    again.SOPInstanceUID = "1.7"
    save(tmp_path / "another_name", again)
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], scan())
    assert "2 repeated slices were left out" in warnings_of()


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime"])
def test_phases_of_one_series_become_series_of_their_own(tmp_path, tag):
    for phase in (1, 2):
        write_series(
            tmp_path, scan(phase), AFFINE, names=f"p{phase}_{{}}", SeriesInstanceUID="1.5", **{tag: phase}
        )
    found = dicom.series_in(tmp_path)
    assert [series.num_slices for series in found] == [4, 4]
    assert len({series.key for series in found}) == 2
    np.testing.assert_array_equal(dicom.read(tmp_path / "p2_1")[0], scan(2))
    assert "several DICOM series" in problem_of(tmp_path)


def test_different_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    for phase in (1, 2):
        write_series(tmp_path, scan(phase), AFFINE, names=f"p{phase}_{{}}", SeriesInstanceUID="1.5")
    assert "up to 2 different images at one place" in problem_of(tmp_path)


def test_two_acquisitions_with_a_gap_between_are_two_series(tmp_path):
    above = AFFINE.copy()
    above[2, 3] += 100
    write_series(tmp_path, scan(1), AFFINE, names="a{}", SeriesInstanceUID="1.5", AcquisitionNumber=1)
    write_series(tmp_path, scan(2), above, names="b{}", SeriesInstanceUID="1.5", AcquisitionNumber=2)
    assert [series.usable for series in dicom.series_in(tmp_path)] == [True, True]


def test_the_series_with_most_slices_is_chosen_and_scouts_and_captures_are_not(tmp_path):
    write_series(tmp_path / "main", scan(), AFFINE)
    write_series(tmp_path / "thin", scan(1, (5, 6, 3)), AFFINE)
    long = scan(2, (5, 6, 9))
    write_series(tmp_path / "scout", long, AFFINE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "mpr", long, AFFINE, ImageType=["DERIVED", "SECONDARY", "MPR"])
    write_series(tmp_path / "capture", long, AFFINE, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_series(tmp_path / "pet", long, AFFINE, Modality="PT")
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], scan())
    reasons = {series.files[0].parent.name: series.why_not for series in dicom.series_in(tmp_path)}
    assert reasons == {
        "main": "",
        "thin": "",
        "pet": "",
        "scout": "a localiser",
        "mpr": "a reformatted or projected series",
        "capture": "a secondary capture",
    }


def test_several_series_of_equal_length_are_listed_and_a_file_chooses(tmp_path):
    for name in ("soft", "bone"):
        write_series(tmp_path, scan(len(name)), AFFINE, names=name + "{}", SeriesDescription="Zweistein soft")
    text = problem_of(tmp_path)
    assert "1: CT, 5 x 6 x 4 voxels" in text
    assert "bone1" in text
    assert "soft1" in text
    assert "Zweistein" not in text


def test_series_of_two_patients_in_one_folder_are_never_chosen_among(tmp_path):
    write_series(tmp_path / "a", scan(), AFFINE)
    write_series(tmp_path / "b", scan(shape=(5, 6, 3)), AFFINE, PatientID="other", StudyInstanceUID="1.8")
    assert "several DICOM series" in problem_of(tmp_path)


def test_without_identifiers_series_are_told_apart_by_folder_orientation_size_and_spacing(tmp_path):
    nothing = dict.fromkeys(("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "PatientID"))
    turned = np.array([[-0.8, 0, 0, 90], [0, 0, 2.5, 80], [0, -0.7, 0, 30], [0, 0, 0, 1]])
    fine = AFFINE @ np.diag((0.5, 0.5, 1, 1))
    write_series(tmp_path / "x", scan(1), AFFINE, names="a{}", **nothing)
    write_series(tmp_path / "x", scan(2), turned, names="b{}", **nothing)
    write_series(tmp_path / "x", scan(3), fine, names="c{}", **nothing)
    write_series(tmp_path / "x", scan(4, (7, 6, 4)), AFFINE, names="d{}", **nothing)
    write_series(tmp_path / "y", scan(5), AFFINE, names="a{}", **nothing)
    found = dicom.series_in(tmp_path)
    assert [series.num_slices for series in found] == [4] * 5
    assert all(series.usable for series in found)
    np.testing.assert_array_equal(dicom.read(tmp_path / "y")[0], scan(5))


def test_slices_may_be_spread_over_folders_below_a_dicomdir_or_the_named_folder(tmp_path):
    files = write_series(tmp_path / "A", scan(), AFFINE)
    other = tmp_path / "B" / files[1].name
    other.parent.mkdir()
    files[1].rename(other)
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], scan())
    (series,) = dicom.series_in(tmp_path)
    assert dicom.path_of(series, [series]) == tmp_path
    write_series(tmp_path / "B", scan(1, (5, 6, 3)), AFFINE, names="other{}")
    with pytest.raises(DataError, match="in several folders among those of other series"):
        dicom.path_of(series, dicom.series_in(tmp_path))
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert dicom.path_of(series, dicom.series_in(tmp_path)) == files[3]
    np.testing.assert_array_equal(dicom.read(files[0])[0], scan())


def test_objects_without_pixels_junk_and_damaged_files_do_no_harm(tmp_path, warnings_of):
    write_series(tmp_path, scan(), AFFINE)
    for modality in ("RTSTRUCT", "SEG", "SR"):
        size = {"Rows": 5, "Columns": 5} if modality == "SEG" else {}
        save(tmp_path / modality, dataset({"Modality": modality, "SeriesInstanceUID": "1.6", **size}))
    (tmp_path / ".DS_Store").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "damaged").write_bytes((tmp_path / "IM0001").read_bytes()[:700])
    assert dicom.read(tmp_path)[0].shape == (5, 6, 4)
    assert "damaged DICOM files are passed over: 1 (damaged)" in warnings_of()
    assert [found.modality for found in dicom.label_objects_in(tmp_path)] == ["RTSTRUCT", "SEG"]
    with pytest.raises(DataError, match="holds no image"):
        dicom.read(tmp_path / "SR")


def test_files_without_preamble_are_recognised(tmp_path):
    for number, file in enumerate(write_series(tmp_path, scan(), AFFINE)):
        content = file.read_bytes()[132:]
        if number % 2:  # without the group of meta information as well
            pydicom.dcmwrite(
                file, pydicom.dcmread(file), implicit_vr=True, little_endian=True, force_encoding=True
            )
            content = file.read_bytes()
            content = content[content.index(b"\x08\x00\x08\x00") :]
        file.write_bytes(content)
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], scan())


# multi-frame


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_multi_frame_file_is_a_volume(tmp_path, modality):
    write_enhanced(tmp_path / "scan.dcm", scan(), AFFINE, Modality=modality)
    for path in (tmp_path, tmp_path / "scan.dcm"):
        voxels, grid = dicom.read(path)
        np.testing.assert_array_equal(voxels, scan())
        np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-9)


def test_a_multi_frame_file_of_several_volumes_is_refused(tmp_path):
    file = write_enhanced(tmp_path / "scan", np.concatenate([scan(1), scan(2)], axis=2), AFFINE)
    data = pydicom.dcmread(file)
    frames = data.PerFrameFunctionalGroupsSequence
    for number in range(4):
        frames[number].PlanePositionSequence = frames[number + 4].PlanePositionSequence
    save(file, data)
    assert "2 different images at one place" in problem_of(tmp_path)


def test_frames_without_a_place_are_refused(tmp_path):
    write_series(tmp_path / "a", scan(), AFFINE, ImagePositionPatient=None)
    assert "no position, orientation or spacing" in problem_of(tmp_path / "a")
    write_series(tmp_path / "b", scan(), AFFINE, NumberOfFrames=3)
    assert "several frames in one file" in problem_of(tmp_path / "b")


# values


def test_slope_and_intercept_belong_to_each_slice(tmp_path):
    files = write_series(tmp_path, scan(dtype="uint16"), AFFINE, Modality="PT", RescaleIntercept=0)
    expected = scan(dtype="uint16").astype(np.float64)
    for k, file in enumerate(files):
        data = pydicom.dcmread(file)
        data.RescaleSlope = k + 0.5
        save(file, data)
        expected[:, :, k] *= k + 0.5
    voxels, _ = dicom.read(tmp_path)
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, expected)


@pytest.mark.parametrize("slope", ["1e99", "40000", "1e300", "-3"])
def test_extreme_slopes_give_numbers_or_an_error(tmp_path, slope):
    voxels = scan(dtype="uint16")
    write_series(tmp_path, voxels, AFFINE, RescaleSlope=slope, RescaleIntercept="1e9")
    found, _ = dicom.read(tmp_path)
    expected = voxels * float(slope) + 1e9
    if float(slope) < 1e38:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    else:
        with pytest.raises(DataError, match="not numbers"):
            read_image([tmp_path])


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_number_are_dropped_and_the_sign_is_kept(tmp_path, signed):
    numbers = np.random.default_rng(0).integers(-2048 if signed else 0, 2048, (5, 6, 4))
    stored = ((numbers & 0xFFF) << 2 | 0xC001).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 13, "PixelRepresentation": int(signed)}
    write_series(tmp_path, stored, AFFINE, **tags)
    voxels, _ = dicom.read(tmp_path)
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, numbers)


def test_eight_bits_are_read(tmp_path):
    voxels = scan(dtype="uint16") % 256
    write_series(tmp_path, voxels.astype("uint8"), AFFINE, BitsAllocated=8, BitsStored=8, HighBit=7)
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], voxels)


def test_padding_of_ct_becomes_air_but_water_is_never_padding(tmp_path):
    voxels = scan()
    voxels[0] = -2000
    write_series(tmp_path / "a", voxels, AFFINE, PixelPaddingValue=-2000)
    found, _ = dicom.read(tmp_path / "a")
    assert (found[0] == -1024).all()
    np.testing.assert_array_equal(found[1:], voxels[1:])
    voxels[0] = 0
    write_series(tmp_path / "b", voxels, AFFINE, PixelPaddingValue=0)
    np.testing.assert_array_equal(dicom.read(tmp_path / "b")[0], voxels)


def test_a_padding_value_with_the_other_sign_is_understood(tmp_path):
    voxels = scan(dtype="uint16")
    voxels[0] = 63536
    write_series(tmp_path, voxels, AFFINE, RescaleIntercept=-1024)
    for file in tmp_path.iterdir():
        data = pydicom.dcmread(file)
        data.add_new("PixelPaddingValue", "SS", -2000)
        save(file, data)
    found, _ = dicom.read(tmp_path)
    assert (found[0] == -1024).all()


def test_monochrome1_turns_mr_but_not_hounsfield_units(tmp_path):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    voxels = scan(dtype="uint16")
    write_series(tmp_path / "ct", voxels, AFFINE, **tags)
    write_series(tmp_path / "mr", voxels, AFFINE, Modality="MR", SOPClassUID=MR, **tags)
    np.testing.assert_array_equal(dicom.read(tmp_path / "ct")[0], voxels)
    np.testing.assert_array_equal(dicom.read(tmp_path / "mr")[0], 4095 - voxels.astype(int))


def test_colour_and_odd_bits_are_refused(tmp_path):
    write_series(tmp_path / "a", scan(), AFFINE, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert "colour images" in problem_of(tmp_path / "a")
    write_series(tmp_path / "b", scan(), AFFINE, BitsStored=17)
    assert "unusual number of bits" in problem_of(tmp_path / "b")


# transfer syntaxes


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_compressed_pixels_are_read_without_loss(tmp_path, syntax, dtype):
    voxels = scan(dtype=dtype, shape=(40, 41, 3))
    for file in write_series(tmp_path, voxels, AFFINE, RescaleIntercept=-5):
        data = pydicom.dcmread(file)
        data.compress(syntax, generate_instance_uid=False)
        save(file, data)
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], voxels.astype(int) - 5)


def test_lossless_jpeg_is_decoded_by_simple_itk(tmp_path):
    image = SimpleITK.GetImageFromArray(scan(shape=(40, 41, 1), dtype="uint16").T)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.KeepOriginalImageUIDOn()
    for key, value in {"0008|0060": "CT", "0020|0032": "1\\2\\3", "0020|000e": "1.2.9"}.items():
        image.SetMetaData(key, value)
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(image)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    assert data.file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
    data.ImagePositionPatient, data.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1, 1], 1, -7
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    save(tmp_path / "a.dcm", data)
    expected = scan(shape=(40, 41, 1), dtype="uint16").astype(int) - 7
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], expected)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings_are_read(tmp_path, syntax):
    for file in write_series(tmp_path, scan(), AFFINE):
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
        pydicom.dcmwrite(
            file,
            data,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )
    np.testing.assert_array_equal(dicom.read(tmp_path)[0], scan())


# errors and privacy


def test_too_few_pixels_are_refused(tmp_path):
    files = write_series(tmp_path, scan(), AFFINE)
    data = pydicom.dcmread(files[1])
    data.PixelData = data.PixelData[:20]
    save(files[1], data)
    assert "truncated" in problem_of(tmp_path)
    files = write_series(tmp_path / "big", scan(), AFFINE, Rows=65535, Columns=65535)
    assert "too short for its header" in problem_of(tmp_path / "big")


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    write_series(tmp_path, scan(), AFFINE)
    for name in [name for name in sys.modules if name.startswith("labelwise.formats.dicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ResourceError, match=r"pip install 'labelwise\[dicom\]'"):
        read_geometry(tmp_path)
    monkeypatch.undo()
    importlib.import_module("labelwise.formats.dicom.image")


def test_no_listing_message_or_representation_names_the_patient(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    files = write_series(tmp_path, scan(), AFFINE)
    data = pydicom.dcmread(files[0])
    data.PatientID = PERSON["PatientID"] * 9  # longer than the standard allows
    save(files[0], data)
    content = files[0].read_bytes()
    place = content.index(b"\x20\x00\x37\x00") + 8
    files[0].write_bytes(content[:place] + b"Zweistein" + content[place + 9 :])
    texts = [problem_of(files[0]), problem_of(tmp_path / "nothing"), repr(dicom.series_in(tmp_path))]
    texts += [caplog.text, *capfd.readouterr()]
    for word in ("Zweistein", "4711", "19010203", "Nowhere", "1.2.3"):
        assert not any(word in text for text in texts), word
