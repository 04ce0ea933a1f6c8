"""DICOM-SEG: what is written lies on the source, frame by frame; what is read is placed by position."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_enhanced
from dicom_labels import NAMES, affines, blobs, labels_on, series
from hypothesis import given, settings
from hypothesis import strategies as st

from labelwise.errors import ConfigError, DataError
from labelwise.formats import (
    Layout,
    is_dicom,
    read_geometry,
    read_labels,
    segment_names,
    write_labels,
)
from labelwise.formats.dicom import seg
from labelwise.formats.dicom.header import read_header
from labelwise.types import Volume

SEGMENTS = Layout(segments=NAMES[1:])


def refusal(file: Path, scan: Path) -> str:
    """The message of the error with which a file is refused, if it is."""
    try:
        read_labels(file, SEGMENTS, like=scan)
    except DataError as error:
        return str(error)
    return ""


def frames_by_source(file: Path) -> dict[str, list[tuple[pydicom.Dataset, int, np.ndarray]]]:
    """With pydicom alone: source instance -> (frame's facts, segment, pixels) of the frames that refer to it."""
    data = pydicom.dcmread(file)
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    found: dict[str, list] = {}
    for own, frame in zip(data.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        source = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        identified = own.get("SegmentIdentificationSequence")
        number = int(identified[0].ReferencedSegmentNumber) if identified else 0
        found.setdefault(source, []).append((own, number, frame))
    return found


def expected_pixels(scan: Path, labels: Volume, header: pydicom.Dataset) -> np.ndarray:
    """With numpy alone: the labels at the places of the pixels of one image."""
    along, down = np.reshape([float(v) for v in header.ImageOrientationPatient], (2, 3))
    down_mm, along_mm = (float(v) for v in header.PixelSpacing)
    rows, columns = np.meshgrid(range(header.Rows), range(header.Columns), indexing="ij")
    lps = (
        np.array([float(v) for v in header.ImagePositionPatient])
        + columns[..., None] * along * along_mm
        + rows[..., None] * down * down_mm
    )
    ras = np.concatenate([lps * (-1, -1, 1), np.ones((*rows.shape, 1))], axis=-1)
    index = np.rint(ras @ np.linalg.inv(labels.affine).T).astype(int)
    return labels.data[index[..., 0], index[..., 1], index[..., 2]]


@pytest.mark.parametrize("binary", [False, True])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(affine=affines(), seed=st.integers(0, 99))
def test_every_frame_lies_on_its_source_and_comes_back(binary, affine, seed):
    with tempfile.TemporaryDirectory() as folder:
        scan, file = series(Path(folder) / "scan", (7, 6, 5), affine), Path(folder) / "a.seg.dcm"
        labels = labels_on(scan, seed)
        write_labels(file, labels, like=scan, names=NAMES, binary=binary)
        assert np.array_equal(read_labels(file, SEGMENTS, like=scan).data, labels.data)
        written = frames_by_source(file)
        shared = pydicom.dcmread(file).SharedFunctionalGroupsSequence[0]
        for image in scan.iterdir():
            header = pydicom.dcmread(image)
            expected = expected_pixels(scan, labels, header)
            frames = written.get(header.SOPInstanceUID, [])
            assert bool(frames) == expected.any()
            for own, number, pixels in frames:
                assert own.PlanePositionSequence[0].ImagePositionPatient == header.ImagePositionPatient
                assert np.array_equal(pixels, expected == number if number else expected)
            plane, measures = shared.PlaneOrientationSequence[0], shared.PixelMeasuresSequence[0]
            assert np.allclose(plane.ImageOrientationPatient, header.ImageOrientationPatient, atol=1e-9)
            assert measures.PixelSpacing == header.PixelSpacing


def test_segments_are_coded_and_say_what_made_them(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    data = pydicom.dcmread(file)
    assert data.SegmentationType == "LABELMAP"
    background, liver, kidney, own = data.SegmentSequence
    assert background.SegmentNumber == 0
    kinds = [item.SegmentedPropertyTypeCodeSequence[0] for item in (liver, kidney, own)]
    assert [kind.CodingSchemeDesignator for kind in kinds] == ["SCT", "SCT", "99LABELWISE"]
    assert kinds[0].CodeValue == "10200004"
    assert kinds[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kinds[2].CodeMeaning == "thing of the clinic"
    assert "Abnormal" not in kidney.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "labelwise"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert len(liver.RecommendedDisplayCIELabValue) == 3


def test_pairs_and_tumours_are_coded_as_such(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    write_labels(
        file, labels_on(scan), like=scan, names=("background", "kidneys", "liver tumour", "a lesion")
    )
    _, kidneys, tumour, lesion = pydicom.dcmread(file).SegmentSequence
    side = kidneys.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeMeaning == "Right and left"
    for item in (tumour, lesion):
        assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
        assert item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99LABELWISE"


def test_patient_study_and_every_image_are_referred_to(tmp_path):
    scan, file = (
        series(tmp_path / "scan", SpecificCharacterSet="ISO_IR 100", PatientName="Grün^Änne"),
        tmp_path / "a",
    )
    write_labels(file, labels_on(scan), like=scan, names=(*NAMES, "größe"), label_format="dicom-seg")
    data, header = pydicom.dcmread(file), pydicom.dcmread(next(scan.iterdir()))
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert data[keyword].value == header[keyword].value
    assert data.SeriesInstanceUID != header.SeriesInstanceUID
    (referenced,) = data.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == header.SeriesInstanceUID
    uids = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert uids == {pydicom.dcmread(image).SOPInstanceUID for image in scan.iterdir()}
    assert seg.referenced_series(file) == read_header(next(scan.iterdir())).series
    assert segment_names(file) == (*NAMES[1:], "größe")


def test_an_enhanced_multi_frame_scan_is_referred_to_frame_by_frame(tmp_path):
    voxels = np.zeros((8, 7, 5), np.int16)
    scan = write_enhanced(tmp_path / "scan" / "one", voxels, np.diag((-1.5, -1.25, 2.5, 1)))
    labels = Volume(blobs(voxels.shape), read_geometry(scan).affine)
    file = tmp_path / "a.seg.dcm"
    write_labels(file, labels, like=scan, names=NAMES)
    assert np.array_equal(read_labels(file, SEGMENTS, like=scan).data, labels.data)
    source, places = pydicom.dcmread(scan), []
    for own in pydicom.dcmread(file).PerFrameFunctionalGroupsSequence:
        reference = own.DerivationImageSequence[0].SourceImageSequence[0]
        original = source.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1]
        places.append(
            original.PlanePositionSequence[0].ImagePositionPatient
            == own.PlanePositionSequence[0].ImagePositionPatient
        )
    assert places
    assert all(places)


def test_some_segments_of_a_file_are_read_in_the_order_that_is_asked_for(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    labels = labels_on(scan)
    for binary in (False, True):
        write_labels(file, labels, like=scan, names=NAMES, binary=binary)
        found = read_labels(file, Layout(segments=(NAMES[3], "not there", NAMES[1])), like=scan)
        assert np.array_equal(found.data, np.select([labels.data == 3, labels.data == 1], [1, 3], 0))


def test_classes_with_gaps_between_their_values(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    labels = labels_on(scan)
    labels = Volume(np.where(labels.data == 2, 0, labels.data), labels.affine)
    for binary in (False, True):
        write_labels(file, labels, like=scan, names=("background", "liver", "", "spleen"), binary=binary)
        found = read_labels(file, Layout(segments=("liver", "spleen")), like=scan)
        assert np.array_equal(found.data, np.select([labels.data == 1, labels.data == 3], [1, 2], 0))


def test_an_empty_label_map_is_a_file_too(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    labels = labels_on(scan)
    write_labels(file, Volume(np.zeros_like(labels.data), labels.affine), like=scan, names=NAMES)
    assert not read_labels(file, SEGMENTS, like=scan).data.any()


def test_a_fractional_segmentation_counts_from_half_and_later_names_cover_earlier(tmp_path):
    scan, file = series(tmp_path / "scan", (4, 4, 3)), tmp_path / "a.seg.dcm"
    labels = labels_on(scan)
    write_labels(
        file, Volume(np.ones_like(labels.data), labels.affine), like=scan, names=NAMES[:3], binary=True
    )
    data = pydicom.dcmread(file)
    both = [*data.PerFrameFunctionalGroupsSequence, *pydicom.dcmread(file).PerFrameFunctionalGroupsSequence]
    for own in both[3:]:
        own.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    data.SegmentationType, data.MaximumFractionalValue, data.NumberOfFrames = "FRACTIONAL", 100, 6
    data.PerFrameFunctionalGroupsSequence = both
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    pixels = np.zeros((6, 4, 4), np.uint8)
    pixels[:3, 0], pixels[3:, :, 0], pixels[:, 1] = 50, 100, 49
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB"
    data.save_as(file)
    found = read_labels(file, Layout(segments=NAMES[1:3]), like=scan).data
    assert set(np.unique(found)) == {0, 1, 2}
    assert (found == 2).sum() == 3 * 3  # a column without the row of 49
    assert (found == 1).sum() == 3 * 3  # a row without what the second covers


def test_frames_outside_the_image_are_left_out_with_a_warning(tmp_path, caplog):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    labels = Volume(np.ones((12, 9, 6), np.uint8), labels_on(scan).affine)
    write_labels(file, labels, like=scan, names=NAMES)
    top = max(scan.iterdir(), key=lambda image: float(pydicom.dcmread(image).ImagePositionPatient[2]))
    top.unlink()
    with caplog.at_level(logging.WARNING, "labelwise"):
        found = read_labels(file, SEGMENTS, like=scan)
    assert found.shape == (12, 9, 5)
    assert found.data.all()
    assert "1 frames lie outside" in caplog.text


def test_labels_of_another_grid_are_refused(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    finer = series(tmp_path / "finer", affine=np.diag((-1.0, -1.25, 2.5, 1)))
    with pytest.raises(DataError, match="do not lie on the voxels"):
        read_labels(file, SEGMENTS, like=finer)
    elsewhere = np.diag((-1.5, -1.25, 2.5, 1))
    elsewhere[2, 3] = 500
    with pytest.raises(DataError, match="beside the image"):
        read_labels(file, SEGMENTS, like=series(tmp_path / "elsewhere", affine=elsewhere))
    with pytest.raises(DataError, match="on the grid of the image"):
        write_labels(tmp_path / "b.seg.dcm", labels_on(scan), like=finer, names=NAMES)
    assert not (tmp_path / "b.seg.dcm").exists()


def test_a_series_without_identifiers_gets_made_up_ones_with_a_warning(tmp_path, caplog):
    none = dict.fromkeys(("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID"))
    scan = series(tmp_path / "scan", SeriesInstanceUID=None, SliceThickness=None, PatientSex="?", **none)
    with caplog.at_level(logging.WARNING, "labelwise"):
        write_labels(tmp_path / "a.seg.dcm", labels_on(scan), like=scan, names=NAMES)
        write_labels(tmp_path / "b.seg.dcm", labels_on(scan), like=scan, names=NAMES)
    assert "names no frame of reference, series, study" in caplog.text
    first, second = (pydicom.dcmread(tmp_path / name) for name in ("a.seg.dcm", "b.seg.dcm"))
    assert first.StudyInstanceUID == second.StudyInstanceUID, "labels of one scan stay in one study"
    assert first.SOPInstanceUID != second.SOPInstanceUID
    images = {pydicom.dcmread(image).file_meta.MediaStorageSOPInstanceUID for image in scan.iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in first.SourceImageSequence} == images


def test_what_cannot_be_written_leaves_no_file(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "out" / "a.seg.dcm"
    labels = labels_on(scan)
    with pytest.raises(ConfigError, match="no class is named"):
        write_labels(file, labels, like=scan)
    with pytest.raises(DataError, match="no name"):
        write_labels(file, labels, like=scan, names=NAMES[:2])
    with pytest.raises(ConfigError, match="series that they belong to"):
        write_labels(file, labels, names=NAMES)
    image = tmp_path / "scan.nii.gz"
    write_labels(image, labels)
    with pytest.raises(ConfigError, match="for a DICOM series"):
        write_labels(file, labels, like=image, names=NAMES)
    with pytest.raises(ConfigError, match="not written in this format"):
        write_labels(tmp_path / "a.png", labels)
    with pytest.raises(ConfigError, match="does not fit the format"):
        write_labels(tmp_path / "a.dcm", labels, label_format="nrrd")
    assert not file.parent.exists() or not list(file.parent.iterdir())


def test_damaged_files_are_refused_by_name_without_their_contents(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.seg.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    whole = file.read_bytes()
    with pytest.raises(DataError, match="none of the segments"):
        read_labels(file, Layout(segments=("spleen",)), like=scan)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(200, len(whole))])
        for place in random.integers(132, len(damaged), 4):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        assert is_dicom(file)
        assert "Zweistein" not in refusal(file, scan)
