"""`convert` and `predict --format`: labels in the formats of clinics and back, on the scan they belong to."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from labelwise import read_manifest, run
from labelwise.errors import ConfigError, DataError
from labelwise.formats import Layout, read_geometry, read_labels, segment_names, value_names, write_labels
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import PERSON
from dicom_labels import NAMES, labels_on, series

from conftest import tiny_config

FORMATS = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}
SEGMENTS = Layout(segments=NAMES[1:])


@pytest.fixture
def scan(tmp_path):
    return series(tmp_path / "scan")


@pytest.fixture
def labels(tmp_path, scan):
    """As predict writes them: NIfTI with the names of the classes."""
    write_labels(tmp_path / "p1.nii.gz", labels_on(scan), like=scan, names=NAMES)
    return tmp_path / "p1.nii.gz"


@pytest.mark.parametrize("through", FORMATS)
def test_labels_go_through_every_format_and_come_back(tmp_path, scan, labels, through):
    result = run.convert(labels, tmp_path / f"a{FORMATS[through]}", like=scan)
    assert result.classes == {1: NAMES[1], 2: NAMES[2], 3: NAMES[3]}
    back = run.convert(result.file, tmp_path / "back.nii.gz", like=scan)
    assert back.classes == result.classes
    assert np.array_equal(read_labels(back.file).data, read_labels(labels).data)
    assert value_names(back.file) == dict(enumerate(NAMES))


def test_the_command_writes_into_a_folder_and_says_what(tmp_path, scan, labels, command):
    (tmp_path / "out").mkdir()
    answer = command(
        "convert", labels, "--like", scan, "-o", tmp_path / "out", "--format", "dicom-seg", "--binary"
    )
    assert answer.code == 0
    assert "liver, left kidney, thing of the clinic" in answer.out
    assert pydicom.dcmread(tmp_path / "out" / "p1.seg.dcm").SegmentationType == "BINARY"
    answer = command(
        "convert", tmp_path / "out" / "p1.seg.dcm", "--like", scan, "-o", tmp_path / "out", "--json"
    )
    assert json.loads(answer.out)["classes"]["2"] == "left kidney"
    assert read_labels(tmp_path / "out" / "p1.nii.gz").data.any()


def test_names_are_given_where_the_file_has_none(tmp_path, scan, command):
    plain = tmp_path / "plain.nii.gz"
    write_labels(plain, labels_on(scan))
    answer = command("convert", plain, "--like", scan, "-o", tmp_path / "a.seg.dcm")
    assert answer.code == 2
    assert "--classes liver=1" in answer.err
    answer = command(
        "convert",
        plain,
        "--like",
        scan,
        "-o",
        tmp_path / "a.seg.dcm",
        "--classes",
        "liver=1,spleen=2,aorta=3",
    )
    assert answer.code == 0
    assert "liver, spleen, aorta" in answer.out
    answer = command("convert", plain, "-o", tmp_path / "b.seg.nrrd", "--classes", "liver=1,spleen=2")
    assert answer.code == 3
    assert "no name" in answer.err
    assert not (tmp_path / "b.seg.nrrd").exists()


def test_what_cannot_be_converted_is_refused(tmp_path, scan, labels):
    with pytest.raises(ConfigError, match="did you mean 'dicom-seg'"):
        run.convert(labels, tmp_path / "a", like=scan, label_format="dicomseg")
    with pytest.raises(ConfigError, match="replace the labels"):
        run.convert(labels, labels, like=scan)
    with pytest.raises(ConfigError, match="series that they belong to"):
        run.convert(labels, tmp_path / "a.seg.dcm")
    with pytest.raises(DataError, match="no such file"):
        run.convert(tmp_path / "none.nii.gz", tmp_path / "a.seg.nrrd")
    with pytest.raises(ConfigError, match="two classes have one value"):
        run.convert(labels, tmp_path / "a.seg.nrrd", classes={"liver": 1, "spleen": 1})
    with pytest.raises(ConfigError, match="cannot have this value"):
        run.convert(labels, tmp_path / "a.seg.nrrd", classes={"liver": -1})
    seg = run.convert(labels, tmp_path / "a.seg.dcm", like=scan).file
    with pytest.raises(ConfigError, match="names its labels itself"):
        run.convert(seg, tmp_path / "b.nii.gz", like=scan, classes={"liver": 1})
    with pytest.raises(DataError, match="need the image"):
        run.convert(seg, tmp_path / "b.nii.gz")


def test_a_folder_whose_values_are_named_by_the_user_holds_label_maps_and_no_masks(tmp_path, scan):
    for case in ("first", "second"):
        write_labels(tmp_path / "labels" / f"{case}.nii.gz", labels_on(scan))
    named = {"liver": 1, "spleen": 2, "aorta": 3}
    out = run.convert(tmp_path / "labels", tmp_path / "out", classes=named)
    assert [each.file.name for each in out.files] == ["first.nii.gz", "second.nii.gz"]
    assert set(value_names(tmp_path / "out" / "second.nii.gz").values()) >= set(named)
    shown = run.show(tmp_path / "labels", tmp_path / "pictures", classes=named)
    assert {case: set(volumes) for case, volumes in shown.volumes_ml.items()} == {
        "first": set(named), "second": set(named)
    }  # fmt: skip


# predict --format


@pytest.fixture
def large(tmp_path):
    """A series large enough for the patch of the tiny model."""
    return series(tmp_path / "clinic" / "one", (40, 36, 12), np.diag((-9.0, -9.0, 14.0, 1)))


def test_predictions_are_written_in_every_format_and_kept_on_repetition(tmp_path, large, tiny_run, command):
    out = tmp_path / "out"
    for label_format, ending in FORMATS.items():
        answer = command(
            "predict", tiny_run, large.parent, "-o", out / label_format, "--format", label_format
        )
        assert answer.code == 0, answer.err
        assert {file.suffix for file in (out / label_format).iterdir()} >= {".json"}
        assert (out / label_format / f"one{ending}").is_file()
    expected = read_labels(out / "nifti" / "one.nii.gz")
    names = tuple(value_names(out / "nifti" / "one.nii.gz").values())
    for label_format in ("nrrd", "dicom-seg", "rtstruct"):
        found = read_labels(
            out / label_format / f"one{FORMATS[label_format]}", Layout(segments=names[1:]), large
        )
        assert np.array_equal(found.data, expected.data)
    file = out / "dicom-seg" / "one.seg.dcm"
    before = file.read_bytes()
    assert command("predict", tiny_run, large.parent, "-o", file.parent, "--format", "dicom-seg").code == 0
    assert file.read_bytes() == before, "finished scans are skipped"
    record = (file.parent / "one.json").read_text(encoding="utf-8")
    header = pydicom.dcmread(next(large.iterdir()))
    assert not any(
        word in record
        for word in (*PERSON.values(), str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
    )


def test_another_scan_of_the_same_name_does_not_get_the_result(tmp_path, large, tiny_run, command):
    arguments = ("predict", tiny_run, large.parent, "-o", tmp_path / "out", "--format", "dicom-seg")
    assert command(*arguments).code == 0
    shutil.rmtree(large)
    series(large, (40, 36, 12), np.diag((-9.0, -9.0, 13.0, 1)))
    answer = command(*arguments)
    assert answer.code == 1
    assert "does not lie on the grid" in answer.out


def test_a_dicom_segmentation_has_the_type_that_is_asked_for(tmp_path, large, tiny_run, command):
    seg = ("predict", tiny_run, large.parent, "-o", tmp_path / "out", "--format", "dicom-seg")
    file = tmp_path / "out" / "one.seg.dcm"
    assert command(*seg).code == 0
    assert pydicom.dcmread(file).SegmentationType == "LABELMAP"
    labels = read_labels(file, Layout(segments=segment_names(file)), large).data
    answer = command(*seg, "--binary")
    assert answer.code == 1
    assert "other type of DICOM-SEG" in answer.out
    assert command(*seg, "--binary", "--overwrite").code == 0
    assert pydicom.dcmread(file).SegmentationType == "BINARY"
    np.testing.assert_array_equal(read_labels(file, Layout(segments=segment_names(file)), large).data, labels)
    for words in (("predict", tiny_run, large.parent), ("convert", file, "--like", large)):
        answer = command(*words, "-o", tmp_path / "x.nii.gz", "--binary")
        assert answer.code == 2
        assert "binary is a type of DICOM-SEG" in answer.err
    assert not (tmp_path / "x.nii.gz").exists()


def test_dicom_is_refused_for_other_scans_before_any_work(tmp_path, tiny_run, tiny_cohort, command):
    answer = command("predict", tiny_run, tiny_cohort, "-o", tmp_path / "out", "--format", "rtstruct")
    assert answer.code == 2
    assert "for a DICOM series" in answer.err
    answer = command("predict", tiny_run, tiny_cohort, "-o", tmp_path / "out", "--format", "dicom")
    assert answer.code == 2
    assert "did you mean 'dicom-seg'" in answer.err


# real scans


def by_position(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda file: float(_header(file).ImagePositionPatient[2]))


def _header(file: Path) -> pydicom.Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True)


def same_place(written: SimpleITK.Image, source: SimpleITK.Image) -> bool:
    """Whether two images have their corners at the same places, by SimpleITK."""
    if sorted(written.GetSize()) != sorted(source.GetSize()):
        return False
    corners = []
    for image in (written, source):
        size = np.array(image.GetSize()) - 1
        corners.append(
            [image.TransformIndexToPhysicalPoint((size * c).tolist()) for c in np.ndindex(2, 2, 2)]
        )
    apart = np.linalg.norm(np.array(corners[0])[:, None] - np.array(corners[1])[None], axis=2)
    return bool(apart.min(axis=1).max() < 1e-2)


@pytest.mark.real_data
def test_the_sample_scans_come_back_exactly_on_their_source(real_data, tiny_run, tmp_path):
    sample = real_data / "ct_sample"
    if not sample.is_dir():
        pytest.skip("LABELWISE_TEST_DATA has no ct_sample/")
    plain = tmp_path / "plain"
    for kind, name in (("images", "abdomen_ct_3mm"), ("labels", "abdomen_seg_3mm")):
        (plain / kind).mkdir(parents=True)
        (plain / kind / "p1.nii.gz").symlink_to(sample / f"{name}.nii.gz")
    values = np.unique(read_labels(plain / "labels" / "p1.nii.gz").data)
    classes = {f"class {value}": int(value) for value in values if value}
    sources = {"nifti": plain, "series": sample / "dicom"}
    options = {"nifti": {"modality": "ct"}, "series": {}}
    out = {}
    for name, folder in sources.items():
        data = tmp_path / name
        run.import_data([folder], data, classes=classes, **options[name])
        (case,) = read_manifest(data).cases
        run.prepare(tiny_config(data), workers=1).require_all()
        result = run.predict(tiny_run, data, tmp_path / "out" / name, split="train", device="cpu")
        out[name] = result.written[case.id]
    assert same_place(
        SimpleITK.ReadImage(str(out["nifti"])), SimpleITK.ReadImage(str(sample / "abdomen_ct_3mm.nii.gz"))
    )
    slices = by_position(sample / "dicom")
    volume = SimpleITK.ReadImage([str(file) for file in slices])
    predicted = SimpleITK.ReadImage(str(out["series"]))
    assert same_place(predicted, volume)
    result = run.predict(
        tiny_run, tmp_path / "series", tmp_path / "seg", split="train", device="cpu", label_format="dicom-seg"
    )
    (segmentation,) = result.written.values()
    expected = SimpleITK.Resample(predicted, volume, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    _check_frames(segmentation, slices, SimpleITK.GetArrayFromImage(expected))


def _check_frames(file: Path, slices: list[Path], expected: np.ndarray) -> None:
    """With pydicom alone: every frame lies on the slice that it refers to and holds its labels."""
    data = pydicom.dcmread(file)
    shared, pixels = data.SharedFunctionalGroupsSequence[0], data.pixel_array
    headers = {_header(image).file_meta.MediaStorageSOPInstanceUID: k for k, image in enumerate(slices)}
    assert {item.ReferencedSOPInstanceUID for item in data.SourceImageSequence} == set(headers)
    seen = set()
    for own, frame in zip(data.PerFrameFunctionalGroupsSequence, pixels.reshape(-1, 512, 512), strict=True):
        source = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        k = headers[source]
        header = _header(slices[k])
        assert own.PlanePositionSequence[0].ImagePositionPatient == header.ImagePositionPatient
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == header.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == header.PixelSpacing
        assert np.array_equal(frame, expected[k])
        seen.add(k)
    assert seen == {k for k in range(len(slices)) if expected[k].any()}
    assert seen, "a model that finds nothing would prove nothing"


@pytest.mark.real_data
def test_the_labels_of_the_sample_series_survive_every_format(real_data, tmp_path):
    sample = real_data / "ct_sample"
    if not sample.is_dir():
        pytest.skip("LABELWISE_TEST_DATA has no ct_sample/")
    labels = read_labels(sample / "dicom_seg.nii.gz")
    values = np.unique(labels.data)[1:]
    names = tuple(
        "background" if not v else f"class {v}" if v in values else "" for v in range(values.max() + 1)
    )
    scan = sample / "dicom"
    assert read_geometry(scan).matches(read_geometry(sample / "dicom_seg.nii.gz"))
    for label_format, ending in FORMATS.items():
        file = tmp_path / f"a{ending}"
        write_labels(file, Volume(labels.data, read_geometry(scan).affine), like=scan, names=names)
        if label_format == "nifti":
            assert np.array_equal(read_labels(file).data, labels.data)
            continue
        found = read_labels(file, Layout(segments=tuple(filter(None, names[1:]))), like=scan)
        assert np.array_equal(np.array([0, *values])[found.data], labels.data)


@pytest.mark.parametrize("output", ["model.onnx", "raw"])
def test_an_export_of_nothing_says_that_nothing_is_there(tmp_path, output):
    with pytest.raises(DataError, match="no such model or data set"):
        run.export(tmp_path / "nosuch", tmp_path / output)
