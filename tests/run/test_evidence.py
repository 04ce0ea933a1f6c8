"""A structure of which nothing was read is not "annotated and absent", and what structures lose to others is told."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from labelwise import run
from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import DataError
from labelwise.formats import Layout, read_geometry, read_labels, value_names, write_image, write_labels
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, BOXES, SHAPE, box, label_map, write_scan, write_segments
from dicom_files import write_series

NAMES = ("background", "liver", "spleen")
TUMOUR = (slice(2, 4), slice(2, 4), slice(2, 4))  # inside the liver


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, logger="labelwise")
    return caplog


def tumour() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[TUMOUR] = True
    return mask


def series(folder: Path) -> Path:
    voxels = np.random.default_rng(0).integers(-1000, 900, SHAPE).astype(np.int16)
    affine = np.diag((-2.0, -2.0, 3.0, 1.0))
    write_series(folder, voxels, affine, SeriesInstanceUID=generate_uid())
    return folder


def drawn_on(scan: Path, structures: tuple[str, ...]) -> Volume:
    grid = read_geometry(scan)
    return Volume(label_map({name: NAMES.index(name) for name in structures}), grid.affine)


def write_clinical(folder: Path, kind: str, structures: tuple[str, ...]) -> None:
    """A series, and labels that list liver and spleen but show only `structures`."""
    scan = series(folder / "ct")
    write_labels(folder / kind, drawn_on(scan, structures), like=scan, names=NAMES, binary="binary" in kind)


KINDS = ("a.seg.dcm", "binary.seg.dcm", "a.rtstruct.dcm")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structures", [("liver",), ("liver", "spleen")])
def test_what_is_listed_but_not_drawn_is_not_annotated(tmp_path, kind, structures, heard):
    write_clinical(tmp_path / "in" / "p", kind, structures)
    manifest = run.import_data([tmp_path / "in"], tmp_path / "m")
    assert manifest.cases[0].annotated == set(structures)
    assert manifest.label_space.structures == structures, "a class that no file shows is no class"
    assert ("nothing" in heard.text) == (len(structures) == 1)
    believed = run.import_data([tmp_path / "in"], tmp_path / "believed", undrawn="absent")
    assert believed.cases[0].annotated == {"liver", "spleen"}
    codes = [problem.code for problem in run.check(tmp_path / "believed").problems]
    assert ("annotated-but-not-drawn" in codes) == (len(structures) == 1), "check knows it, too"


def test_segments_of_slicer_without_a_voxel_are_not_annotated(tmp_path):
    for number, structures in enumerate((("liver",), ("liver", "spleen"))):
        write_scan(tmp_path / "images" / f"c{number}.nii.gz", number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        labels = label_map({name: NAMES.index(name) for name in structures})
        write_segments(
            tmp_path / "labels" / f"c{number}.seg.nrrd", [labels], [("Liver", 1, 0), ("Spleen", 2, 0)]
        )
    options = {"classes": {"liver": 1, "spleen": 2}, "modality": "ct"}
    manifest = run.import_data([tmp_path], tmp_path / "m", **options)
    assert [sorted(case.annotated) for case in manifest.cases] == [["liver"], ["liver", "spleen"]]


# contours


def edited(file: Path, change) -> None:
    data = pydicom.dcmread(file)
    change(data)
    data.save_as(file)


def as_open_lines(data: Dataset, *, closed: bool) -> None:
    """The contours of the spleen as lines; closed ones come back to their first point."""
    for contour in data.ROIContourSequence[1].ContourSequence:
        points = list(contour.ContourData)
        contour.ContourGeometricType = "OPEN_PLANAR"
        contour.ContourData = points + points[:3] if closed else points
        contour.NumberOfContourPoints = len(contour.ContourData) // 3


def as_points(data: Dataset) -> None:
    for contour in data.ROIContourSequence[1].ContourSequence:
        contour.ContourGeometricType, contour.NumberOfContourPoints = "POINT", 1
        contour.ContourData = contour.ContourData[:3]


def without_contours(data: Dataset) -> None:
    del data.ROIContourSequence[1].ContourSequence


def without_item(data: Dataset) -> None:
    del data.ROIContourSequence[1]


def one_open(data: Dataset) -> None:
    data.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"


def one_more_point(data: Dataset) -> None:
    point = Dataset()
    point.ContourGeometricType, point.NumberOfContourPoints = "POINT", 1
    point.ContourData = data.ROIContourSequence[1].ContourSequence[0].ContourData[:3]
    data.ROIContourSequence[1].ContourSequence.append(point)


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (without_item, False),
        (without_contours, False),
        (as_points, False),
        (lambda data: as_open_lines(data, closed=False), False),
        (one_open, False),
        (lambda data: as_open_lines(data, closed=True), True),
        (one_more_point, True),
    ],
)
def test_only_what_was_read_whole_of_a_region_makes_it_annotated(tmp_path, change, known):
    write_clinical(tmp_path / "in" / "p", "a.rtstruct.dcm", ("liver", "spleen"))
    edited(tmp_path / "in" / "p" / "a.rtstruct.dcm", change)
    manifest = run.import_data([tmp_path / "in"], tmp_path / "m")
    assert manifest.cases[0].annotated == ({"liver", "spleen"} if known else {"liver"})
    if known:
        labels = read_case_labels(manifest.cases[0], manifest).data
        index = manifest.label_space.index("spleen")
        assert int((labels == index).sum()) == int(box("spleen").sum())


def test_a_segmentation_without_positions_is_said_to_have_none(tmp_path):
    write_clinical(tmp_path / "in" / "p", "binary.seg.dcm", ("liver",))
    file = tmp_path / "in" / "p" / "binary.seg.dcm"

    def change(data: Dataset) -> None:
        for frame in data.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    edited(file, change)
    with pytest.raises(DataError, match="do not say where they lie"):
        read_labels(file, Layout(segments=("liver",)), tmp_path / "in" / "p" / "ct")


# overlaps

ORDERS = [("Tumour", "Liver"), ("Liver", "Tumour")]


def layered(path: Path, order: tuple[str, str]) -> Path:
    layers = {"Tumour": tumour().astype(np.uint8), "Liver": box("liver").astype(np.uint8)}
    return write_segments(path, [layers[name] for name in order], [(n, 1, i) for i, n in enumerate(order)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("overlap", ["later", "smaller"])
def test_convert_tells_what_is_lost_and_refuses_what_vanishes(tmp_path, order, overlap, heard):
    file = layered(tmp_path / "a.seg.nrrd", order)
    if overlap == "later" and order[1] == "Liver":
        with pytest.raises(DataError, match="'Tumour' lies wholly beneath"):
            run.convert(file, tmp_path / "a.nii.gz")
        assert not (tmp_path / "a.nii.gz").exists()
        return
    run.convert(file, tmp_path / "a.nii.gz", overlap=overlap)
    assert f"overlap in {int(tumour().sum())} voxels" in heard.text
    names = {name: value for value, name in value_names(tmp_path / "a.nii.gz").items()}
    labels = read_labels(tmp_path / "a.nii.gz").data
    assert np.array_equal(labels == names["Tumour"], tumour())
    assert np.array_equal(labels == names["Liver"], box("liver") & ~tumour())


@pytest.mark.parametrize("order", ORDERS)
def test_masks_of_a_folder_lose_nothing_silently(tmp_path, order, heard):
    masks = {"Tumour": tumour(), "Liver": box("liver")}
    for number, name in enumerate(order):
        write_labels(
            tmp_path / "masks" / f"{number}_{name}.nii.gz", Volume(masks[name].astype(np.uint8), AFFINE)
        )
    run.convert(tmp_path / "masks", tmp_path / "a.nii.gz", overlap="smaller")
    assert "overlap in 8 voxels" in heard.text
    labels = read_labels(tmp_path / "a.nii.gz").data
    assert np.array_equal(labels == order.index("Tumour") + 1, tumour())


@pytest.mark.parametrize("order", ORDERS)
def test_import_and_check_tell_of_overlaps_in_layers(tmp_path, order, heard):
    write_scan(tmp_path / "images" / "c0.nii.gz")
    (tmp_path / "labels").mkdir()
    layered(tmp_path / "labels" / "c0.seg.nrrd", order)
    options = {"classes": {"liver": 1, "tumour": 2}, "modality": "ct"}
    if order[1] == "Liver":
        with pytest.raises(DataError, match="--overlap smaller"):
            run.import_data([tmp_path], tmp_path / "m", **options)
        options["overlap"] = "smaller"
    manifest = run.import_data([tmp_path], tmp_path / "m", **options)
    assert "overlap" in heard.text
    assert manifest.cases[0].annotated == {"liver", "tumour"}
    assert "overlapping-structures" in {problem.code for problem in run.check(tmp_path / "m").problems}
    labels = read_case_labels(manifest.cases[0], manifest).data
    assert np.array_equal(labels == manifest.label_space.index("tumour"), tumour())


# folders of label files


def test_a_folder_of_predictions_is_converted_file_by_file(tmp_path):
    for number, structures in enumerate((("liver",), ("liver", "spleen"))):
        labels = label_map({name: NAMES.index(name) for name in structures})
        write_labels(tmp_path / "p" / f"c{number}.nii.gz", Volume(labels, AFFINE), names=NAMES)
        write_image(
            tmp_path / "scans" / f"c{number}_0000.nii.gz", Volume(labels[None].astype(np.int16), AFFINE)
        )
    made = run.convert(tmp_path / "p", tmp_path / "out", label_format="nrrd", like=tmp_path / "scans")
    assert [each.file.name for each in made.files] == ["c0.seg.nrrd", "c1.seg.nrrd"]
    for number, structures in enumerate((("liver",), ("liver", "spleen"))):
        back = read_labels(tmp_path / "out" / f"c{number}.seg.nrrd").data
        assert np.array_equal(back, label_map({name: NAMES.index(name) for name in structures}))


@pytest.mark.parametrize("values", [(1, 2), (3, 7), (1, 255)])
def test_a_mask_with_two_values_is_refused(tmp_path, values):
    for name in BOXES:
        labels = label_map({name: values[0]})
        labels[0, 0, 0] = values[1] if name == "spleen" else 0
        write_labels(tmp_path / "masks" / f"{name}.nii.gz", Volume(labels, AFFINE))
    with pytest.raises(DataError, match="no mask of one structure"):
        run.convert(tmp_path / "masks", tmp_path / "a.nii.gz")
