"""RTSTRUCT: contours become voxels by their centres, and voxels become contours that give them back."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_labels import NAMES, affines, labels_on, series
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labelwise.errors import DataError
from labelwise.formats import Layout, read_geometry, read_labels, segment_names, write_labels
from labelwise.formats.dicom import rtstruct
from labelwise.formats.dicom.header import read_header
from labelwise.formats.dicom.rtstruct import fill, trace
from labelwise.types import Volume

SEGMENTS = Layout(segments=NAMES[1:])


def refusal(file: Path, scan: Path) -> str:
    """The message of the error with which a file is refused, if it is."""
    try:
        read_labels(file, SEGMENTS, like=scan)
    except DataError as error:
        return str(error)
    return ""


def disc(radius: float, centre: tuple[float, float], points: int = 2000) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


# polygons


@settings(max_examples=150, deadline=None, derandomize=True)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_mask_comes_back_from_its_outlines(mask):
    assert np.array_equal(fill(trace(mask), mask.shape), mask)


@pytest.mark.parametrize("radius", [2.5, 7.3, 20.0, 55.5])
def test_the_area_of_a_disc_is_that_of_geometry(radius):
    filled = fill([disc(radius, (63.2, 60.9))], (128, 128))
    # Gauss' circle problem: the error grows far more slowly than the outline.
    assert abs(filled.sum() - np.pi * radius**2) < 3 * radius ** (2 / 3)
    rows, columns = np.indices(filled.shape)
    assert np.array_equal(filled, np.hypot(columns - 63.2, rows - 60.9) < radius)


def test_holes_are_contours_inside_contours_or_keyholes():
    ring = fill([disc(30, (40, 40.3)), disc(12, (44, 38))], (80, 80))
    assert abs(ring.sum() - np.pi * (30**2 - 12**2)) < 30
    (outline,) = trace(ring)
    assert np.array_equal(fill([outline], ring.shape), ring)


def test_neighbouring_polygons_share_no_pixel_and_leave_none_between():
    left, right = (np.array([(a, 0), (a + 4, 0), (a + 4, 6), (a, 6)], float) for a in (0, 4))
    together = fill([left], (6, 8)).astype(int) + fill([right], (6, 8))
    assert (together == 1).all()


def test_polygons_beyond_the_edge_of_the_image_are_cut_off():
    around = np.array([(-50, -50), (50, -50), (50, 50), (-50, 50)], float)
    assert fill([around], (5, 7)).all()
    assert not fill([around + 200], (5, 7)).any()


# files


@settings(max_examples=15, deadline=None, derandomize=True)
@given(affine=affines(), seed=st.integers(0, 99))
def test_labels_come_back_from_their_contours_on_any_grid(affine, seed):
    with tempfile.TemporaryDirectory() as folder:
        scan, file = series(Path(folder) / "scan", (9, 8, 5), affine), Path(folder) / "a.rtstruct.dcm"
        labels = labels_on(scan, seed)
        write_labels(file, labels, like=scan, names=NAMES)
        assert np.array_equal(read_labels(file, SEGMENTS, like=scan).data, labels.data)


def test_each_contour_lies_in_the_image_that_it_refers_to(tmp_path):
    turned = np.array([[-1.1, 0.2, 0.3, 10], [0.1, -1.2, 0.4, 20], [-0.3, 0.3, 2.2, 30], [0, 0, 0, 1.0]])
    turned[:3, :3] = np.linalg.qr(turned[:3, :3])[0] @ np.diag((1.1, 1.2, 2.5))
    scan, file = series(tmp_path / "scan", affine=turned), tmp_path / "a.rtstruct.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    data, headers = pydicom.dcmread(file), [pydicom.dcmread(image) for image in scan.iterdir()]
    by_uid = {header.SOPInstanceUID: header for header in headers}
    assert [item.ROIName for item in data.StructureSetROISequence] == list(NAMES[1:])
    assert all(len(item.ROIDisplayColor) == 3 for item in data.ROIContourSequence)
    for item in data.ROIContourSequence:
        for contour in item.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            header = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            normal = np.cross(*np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float))
            away = (points - np.array(header.ImagePositionPatient, float)) @ normal
            assert np.abs(away).max() < 1e-3
    frame = data.ReferencedFrameOfReferenceSequence[0]
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ContourImageSequence} == set(by_uid)
    assert rtstruct.referenced_series(file) == read_header(next(scan.iterdir())).series
    assert data.PatientID == headers[0].PatientID


def test_a_ball_drawn_by_hand_has_the_volume_of_geometry(tmp_path):
    spacing, radius = (0.8, 0.9, 1.5), 12.0
    shape = (44, 40, 24)
    scan = series(tmp_path / "scan", shape, np.diag((-spacing[0], -spacing[1], spacing[2], 1)))
    file = _drawn(tmp_path, scan, "liver", _ball(shape, spacing, radius))
    found = read_labels(file, Layout(segments=("liver",)), like=scan)
    volume = found.data.sum() * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    again = tmp_path / "again.rtstruct.dcm"
    write_labels(again, found, like=scan, names=("background", "liver"))
    assert np.array_equal(read_labels(again, Layout(segments=("liver",)), like=scan).data, found.data)


def test_open_contours_repeated_ones_and_those_outside_are_handled_and_reported(tmp_path, caplog):
    scan = series(tmp_path / "scan", (12, 9, 4), np.diag((-1.0, -1.0, 2.0, 1)))
    square = np.array([(2, 2, 0), (6, 2, 0), (6, 5, 0), (2, 5, 0)], float) + np.array((0.5, 0.5, 0))
    contours = [square + np.array((0, 0, z)) for z in (2, 2, 50)]
    file = _drawn(tmp_path, scan, "liver", contours, kinds=["CLOSED_PLANAR"] * 3 + ["POINT"])
    with caplog.at_level(logging.WARNING, "labelwise"):
        found = read_labels(file, Layout(segments=("liver",)), like=scan)
    assert found.data.sum() == 4 * 3
    assert "1 points and open contours" in caplog.text
    assert "1 contours lie outside" in caplog.text


def test_contours_between_or_across_the_slices_are_refused(tmp_path):
    scan = series(tmp_path / "scan", (12, 9, 4), np.diag((-1.0, -1.0, 2.0, 1)))
    square = np.array([(2, 2, 0), (6, 2, 0), (6, 5, 0), (2, 5, 0)], float)
    for what, contour in (
        ("between", square + np.array((0, 0, 1))),
        ("across", square * (1, 1, 0) + [[0, 0, 0], [0, 0, 4]] * 2),
    ):
        file = _drawn(tmp_path, scan, "liver", [contour])
        with pytest.raises(DataError, match=f"contours {what} its slices"):
            read_labels(file, Layout(segments=("liver",)), like=scan)


def test_names_are_read_and_missing_ones_refused(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.rtstruct.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    assert segment_names(file) == NAMES[1:]
    with pytest.raises(DataError, match="none of the segments"):
        read_labels(file, Layout(segments=("spleen",)), like=scan)
    with pytest.raises(DataError, match="need the image"):
        read_labels(file, SEGMENTS)


def test_a_class_that_is_absent_is_a_region_without_contours(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.rtstruct.dcm"
    labels = labels_on(scan)
    write_labels(file, Volume(np.zeros_like(labels.data), labels.affine), like=scan, names=NAMES)
    assert segment_names(file) == NAMES[1:]
    assert not read_labels(file, SEGMENTS, like=scan).data.any()


def test_damaged_files_are_refused(tmp_path):
    scan, file = series(tmp_path / "scan"), tmp_path / "a.rtstruct.dcm"
    write_labels(file, labels_on(scan), like=scan, names=NAMES)
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(200, len(whole))])
        for place in random.integers(132, len(damaged), 4):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        assert "Zweistein" not in refusal(file, scan)


def _ball(shape, spacing, radius) -> list[np.ndarray]:
    """Circles in LPS mm around the middle of a grid whose first voxel lies at 0."""
    middle = np.array(shape) // 2 * np.array(spacing)
    circles = []
    for k in range(shape[2]):
        height = k * spacing[2] - middle[2]
        if abs(height) < radius:
            flat = disc(np.sqrt(radius**2 - height**2), (middle[0], middle[1]), 300)
            circles.append(np.column_stack([flat, np.full(len(flat), k * spacing[2])]))
    return circles


def _drawn(
    folder: Path, scan: Path, name: str, contours: list[np.ndarray], kinds: list[str] | None = None
) -> Path:
    """An RTSTRUCT with these contours, (N, 3) mm in LPS."""
    file = folder / "drawn.rtstruct.dcm"
    grid = read_geometry(scan)
    write_labels(
        file, Volume(np.zeros(grid.shape, np.uint8), grid.affine), like=scan, names=("background", name)
    )
    data, items = pydicom.dcmread(file), []
    for kind, points in zip(
        kinds or ["CLOSED_PLANAR"] * len(contours), [*contours, np.zeros((1, 3))], strict=False
    ):
        item = pydicom.Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
        item.ContourData = [f"{value:.4f}" for value in points.ravel()]
        items.append(item)
    data.ROIContourSequence[0].ContourSequence = items
    data.save_as(file)
    return file
