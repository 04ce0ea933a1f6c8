"""Folders as people have them: what lies there is found and used, or named as passed over."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelwise import run
from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.errors import DataError
from labelwise.formats import read_geometry, read_labels, write_labels
from labelwise.importers.described import channel_names, kind_of
from labelwise.infer.image import as_image
from labelwise.infer.scans import find_scans
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, SHAPE, WAYS, box, label_map, write_named, write_scan, write_segments
from dicom_files import write_series

VALUES = {"liver": 1, "spleen": 2}
STATED = {"classes": VALUES, "modality": "ct"}


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, logger="labelwise")
    return caplog


def write_map(path: Path) -> Path:
    write_labels(path, Volume(label_map(VALUES), AFFINE))
    return path


def labelled(manifest) -> dict[str, bool]:
    return {case.id: case.labels is not None for case in manifest.cases}


# where scans and labels lie


@pytest.mark.parametrize("places", [("final", "original"), ("reader_a", "reader_b"), ("1", "2", "3")])
def test_label_maps_in_sibling_folders_never_become_scans(tmp_path, places, heard):
    for number in range(2):
        write_scan(tmp_path / "data" / f"c{number}.nii.gz", number)
        for place in places:
            write_map(tmp_path / "data" / "labels" / place / f"c{number}.nii.gz")
    with pytest.raises(DataError, match=f"--labels labels/{places[0]}"):
        run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", labels=f"labels/{places[-1]}", **STATED)
    assert labelled(manifest) == {"c0": True, "c1": True}
    assert f"labels/{places[0]}/c0.nii.gz" in heard.text


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids=["each its own name", "names that repeat"])
@pytest.mark.parametrize("ending", ["", "_0000"])
def test_folders_of_labels_beside_those_of_their_images_are_used_at_any_depth(tmp_path, names, ending, heard):
    for site, name in zip(("north", "south"), names, strict=True):
        place = tmp_path / "data" / "2020" / site
        write_scan(place / "images" / f"{name}{ending}.nii.gz")
        write_scan(place / "images" / f"unlabelled {site}{ending}.nii.gz", 1)
        write_map(place / "Masks" / f"{name}.nii.gz")
    write_map(tmp_path / "data" / "2020" / "Masks" / "of nobody.nii.gz")
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    pairs = {case.images[0].parents[1].name: case.labels for case in manifest.cases if case.labels}
    assert {site: file.parents[1].name for site, file in pairs.items()} == {
        "north": "north",
        "south": "south",
    }
    assert sum(case.labels is None for case in manifest.cases) == 2
    assert "passed over (--labels names their folder): 1 (2020/Masks/of nobody.nii.gz)" in heard.text


def test_two_label_files_beside_one_image_are_refused(tmp_path):
    write_scan(tmp_path / "data" / "north" / "images" / "a.nii.gz")
    for place in ("masks", "labels"):
        write_map(tmp_path / "data" / "north" / place / "a.nii.gz")
    with pytest.raises(DataError, match="two label files of one case") as caught:
        run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert "--labels" in str(caught.value)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}", "{}_mask"),
        ("img_{}", "label_{}"),
        ("Scan-{}", "{}.Seg"),
        ("{}_image_x", "seg {}_x"),
        ("{}_0000", "{}_label"),
    ],
)
def test_labels_whose_names_say_that_they_are_labels_are_paired_and_told(tmp_path, image, label, heard):
    for number in (1, 2, 11):
        write_scan(tmp_path / "data" / "images" / f"{image.format(number)}.nii.gz")
        if number != 2:
            write_map(tmp_path / "data" / "labels" / f"{label.format(number)}.nii.gz")
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    pairs = {case.images[0].name: case.labels and case.labels.name for case in manifest.cases}
    assert pairs == {
        f"{image.format(number)}.nii.gz": None if number == 2 else f"{label.format(number)}.nii.gz"
        for number in (1, 2, 11)
    }
    assert "labels are called otherwise than their images" in heard.text


def test_names_that_leave_open_which_label_is_whose_are_refused(tmp_path):
    write_scan(tmp_path / "data" / "images" / "img_1.nii.gz")
    write_scan(tmp_path / "data" / "images" / "scan_1.nii.gz")
    write_map(tmp_path / "data" / "labels" / "label_1.nii.gz")
    with pytest.raises(DataError, match="no label file has the name of an image"):
        run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)


@pytest.mark.parametrize("sign", ['"', "*", "?"])
def test_a_sign_that_no_id_may_hold_costs_no_case(tmp_path, sign):
    write_scan(tmp_path / "data" / "images" / f"a{sign}1.nii.gz")
    write_map(tmp_path / "data" / "labels" / f"a{sign}1.nii.gz")
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert labelled(manifest) == {"a_1": True}


@pytest.mark.parametrize(("sign", "shown"), [("\t", r"\\t"), ("\u200b", r"\\u200b")], ids=["tab", "no width"])
def test_a_sign_without_a_shape_is_shown_where_a_file_is_refused_for_it(tmp_path, sign, shown):
    write_scan(tmp_path / "data" / "images" / f"a{sign}1.nii.gz")
    with pytest.raises(DataError, match=f"found .*{shown}(.|\n)*do .*signs without a shape"):
        run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct")


def test_classes_that_are_stated_while_no_label_is_found_are_said_to_be_annotated_nowhere(tmp_path, heard):
    write_scan(tmp_path / "data" / "images" / "a.nii.gz")
    write_map(tmp_path / "data" / "labels_rater1" / "a.nii.gz")
    run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert "no case is annotated for the stated classes: 2 (liver, spleen)" in heard.text
    assert "(--images and --labels name these): 1 (labels_rater1/a.nii.gz)" in heard.text


@pytest.mark.parametrize(
    ("scan", "labels"), [("ct", "seg"), ("scan", "liver_mask"), ("{}", "{}_label"), ("ct", ".seg")]
)
def test_one_folder_for_each_patient_is_understood(tmp_path, scan, labels):
    for name in ("anna", "berta", "clara"):
        place = tmp_path / "data" / name
        write_scan(place / f"{scan.format(name)}.nii.gz")
        if name == "clara":
            continue
        if labels == ".seg":
            write_segments(place / "any.seg.nrrd", [label_map(VALUES)], [("Liver", 1, 0), ("Spleen", 2, 0)])
        else:
            write_map(place / f"{labels.format(name)}.nii.gz")
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert labelled(manifest) == {"anna": True, "berta": True, "clara": False}
    assert np.array_equal(read_case_labels(manifest.cases[0], manifest).data == 1, box("liver"))


def test_a_scan_and_its_segmentation_of_slicer_in_one_folder_are_a_pair(tmp_path):
    for number in range(2):
        write_scan(tmp_path / "data" / f"c{number}.nii.gz")
        file = tmp_path / "data" / f"c{number}.seg.nrrd"
        write_segments(file, [label_map(VALUES)], [("Liver", 1, 0), ("Spleen", 2, 0)])
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert labelled(manifest) == {"c0": True, "c1": True}


@pytest.mark.parametrize("layout", ["plain", "nnunet"])
def test_labels_whose_names_all_end_in_0000_are_paired(tmp_path, layout):
    data = tmp_path / "data"
    images, labels = ("images", "labels") if layout == "plain" else ("imagesTr", "labelsTr")
    for number in range(3):
        write_scan(data / images / f"c{number}_0000.nii.gz", number)
        write_map(data / labels / f"c{number}_0000.nii.gz")
    if layout == "nnunet":
        facts = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **VALUES},
            "file_ending": ".nii.gz",
        }
        (data / "dataset.json").write_text(json.dumps(facts))
    manifest = run.import_data([data], tmp_path / "m", **(STATED if layout == "plain" else {}))
    assert all(case.labels is not None and case.annotated == {"liver", "spleen"} for case in manifest.cases)


def test_totalsegmentator_cases_without_masks_are_unlabelled(tmp_path, heard):
    for name in ("s0", "s1"):
        write_scan(tmp_path / "data" / name / "ct.nii.gz")
    write_labels(
        tmp_path / "data" / "s0" / "segmentations" / "liver.nii.gz", Volume(label_map({"liver": 1}), AFFINE)
    )
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m")
    assert labelled(manifest) == {"s0": True, "s1": False}
    assert "unlabelled" in heard.text


# words


CT = (
    "CT",
    "ct",
    "CTA",
    "CT_arterial",
    "ct-portal",
    "CECT",
    "NCCT",
    "lowdose CT",
    "LDCT",
    "CBCT",
    "computed tomography",
)
MR = ("MR", "MRI", "T1", "T1w", "T2-FLAIR", "FLAIR", "ADC", "DWI", "cine MR", "LGE")


@pytest.mark.parametrize("name", CT)
def test_a_name_with_a_word_for_ct_is_a_ct(name, heard):
    assert kind_of([name]).modality == "ct"
    assert not heard.text


@pytest.mark.parametrize("name", [*MR, "octopus", "factor", "Picture"])
def test_names_of_sequences_are_mr_and_unknown_ones_are_said(name, heard):
    assert kind_of([name]).modality == ("mr" if name in MR else "other")
    assert ("not known" in heard.text) == (name not in MR)


@pytest.mark.parametrize("named", [{"0": "CT"}, {"CT": 0}, {"CT": "0"}, {0: "CT"}, ["CT"], "CT"])
def test_channel_names_are_read_either_way_round(named):
    assert channel_names(named) == ["CT"]


def test_channels_keep_their_order_either_way_round():
    expected = ["T1", "T2", "FLAIR"]
    assert channel_names({"2": "FLAIR", "0": "T1", "1": "T2"}) == expected
    assert channel_names({"FLAIR": 2, "T1": 0, "T2": 1}) == expected


# predict


@pytest.mark.parametrize("loose", [False, True])
def test_predict_uses_dicom_series_beside_other_scans(tmp_path, heard, loose):
    """In a folder of its own, or its slices among the files."""
    write_scan(tmp_path / "in" / "a.nii.gz")
    place = tmp_path / "in" if loose else tmp_path / "in" / "series"
    write_series(place, np.arange(120, dtype=np.int16).reshape(6, 5, 4), np.diag((-1.0, -1, 2, 1)))
    found = find_scans(tmp_path / "in", intensity="ct")
    assert [scan.id for scan in found] == ["a", "in" if loose else "series"]
    assert [as_image(scan.images).volume.shape for scan in found] == [SHAPE, (6, 5, 4)]
    assert "passed over" not in heard.text
    assert [scan.id for scan in find_scans(tmp_path / "in", intensity="mr")] == ["a"]
    assert "passed over" in heard.text


def test_predict_names_what_it_passes_over_and_finds_a_folder_for_each_patient(tmp_path, heard):
    write_scan(tmp_path / "in" / "a.nii.gz")
    write_segments(tmp_path / "in" / "a.seg.nrrd", [label_map(VALUES)], [("Liver", 1, 0)])
    write_series(tmp_path / "in" / "series", np.zeros((6, 5, 4), np.int16), np.diag((-1.0, -1, 2, 1)))
    write_scan(tmp_path / "in" / "more" / "b.nii.gz")
    assert [scan.id for scan in find_scans(tmp_path / "in", intensity="ct")] == ["a", "series"]
    for word in ("more/", "a.seg.nrrd"):
        assert word in heard.text
    for name in ("anna", "berta"):
        write_scan(tmp_path / "patients" / name / "ct.nii.gz")
    write_scan(tmp_path / "patients" / "berta" / "late.nii.gz")
    found = [scan.id for scan in find_scans(tmp_path / "patients", intensity="ct")]
    assert found == ["anna", "berta_ct", "berta_late"]
    with pytest.raises(DataError, match="no such file or folder"):
        find_scans(tmp_path / "nowhere", intensity="ct")


# remedies


@pytest.mark.parametrize("way", WAYS)
def test_own_results_are_imported_again_without_an_option(tmp_path, way):
    write_scan(tmp_path / "data" / "images" / "c0.nii.gz")
    names = {1: "liver", 2: "spleen"}
    file = write_named(tmp_path / "data" / "labels", "c0", way, VALUES, names)
    facts = {"classes": {str(value): name for value, name in names.items()}, "modality": "ct"}
    (file.parent / "c0.json").write_text(json.dumps(facts))
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m")
    assert manifest.data_sets["data"].modality == "ct"
    assert manifest.label_space.structures == ("liver", "spleen")
    assert np.array_equal(read_case_labels(manifest.cases[0], manifest).data == 2, box("spleen"))


def cropped(
    path: Path, start: tuple[int, int, int], stop: tuple[int, int, int], values: dict[str, int]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = label_map(values)[tuple(map(slice, start, stop))]
    write_segments(path, [part], [("Liver", 1, 0), ("Spleen", 2, 0)], start)


@pytest.mark.parametrize(
    ("start", "stop"), [((1, 1, 1), (11, 6, 7)), ((0, 1, 0), SHAPE), ((1, 0, 0), (12, 9, 8))]
)
def test_labels_that_were_cut_to_what_is_drawn_are_put_in_their_place(tmp_path, start, stop):
    scan = write_scan(tmp_path / "data" / "images" / "c0.nii.gz")
    cropped(tmp_path / "data" / "labels" / "c0.seg.nrrd", start, stop, VALUES)
    run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert "label-cropped" in {problem.code for problem in run.check(tmp_path / "m").problems}
    report = run.check(tmp_path / "m", fix=tmp_path / "fixed")
    assert "label-cropped" in {repair.code for repair in report.repairs}
    fixed = read_labels(next((tmp_path / "fixed" / "labels").iterdir()))
    assert np.array_equal(fixed.data, label_map(VALUES))
    run.convert(tmp_path / "data" / "labels" / "c0.seg.nrrd", tmp_path / "whole.nii.gz", like=scan)
    assert np.array_equal(read_labels(tmp_path / "whole.nii.gz").data, label_map(VALUES))
    assert read_geometry(tmp_path / "whole.nii.gz").matches(read_geometry(scan))


def test_labels_half_a_voxel_off_are_not_moved(tmp_path):
    scan = write_scan(tmp_path / "c0.nii.gz")
    shifted = AFFINE.copy()
    shifted[:3, 3] += (AFFINE @ (1.5, 0, 0, 0))[:3]
    write_labels(
        tmp_path / "l.nii.gz",
        Volume(label_map(VALUES)[1:-2], shifted),
        names=("background", "liver", "spleen"),
    )
    with pytest.raises(DataError, match="do not lie on the grid"):
        run.convert(tmp_path / "l.nii.gz", tmp_path / "out.nii.gz", like=scan)


POINTERS = {
    "git-annex": "/annex/objects/SHA256E-s123--abc.nii.gz\n",
    "Git LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
}


@pytest.mark.parametrize("program", POINTERS)
def test_files_that_were_not_fetched_are_said_to_be_that(tmp_path, program):
    file = tmp_path / "a.nii.gz"
    file.write_text(POINTERS[program])
    with pytest.raises(DataError, match=f"not fetched: it is a pointer of {program}"):
        read_geometry(file)


@pytest.mark.parametrize(
    ("target", "words"), [(".git/annex/objects/x/y", "link of git-annex"), ("elsewhere", "leads to no file")]
)
def test_links_that_lead_nowhere_are_said_to_do_so(tmp_path, target, words):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=words):
        read_geometry(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_scan_in_the_place_of_labels_is_said_to_be_one(tmp_path, dtype):
    write_scan(tmp_path / "data" / "images" / "c0.nii.gz")
    voxels = np.random.default_rng(1).normal(0, 300, SHAPE).astype(dtype)
    (tmp_path / "data" / "labels").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / "data" / "labels" / "c0.nii.gz")
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    with pytest.raises(DataError, match=r"looks like a scan|not whole numbers"):
        read_case_labels(manifest.cases[0], manifest)


def test_check_compares_qform_and_sform(tmp_path):
    scan = write_scan(tmp_path / "data" / "images" / "c0.nii.gz")
    write_map(tmp_path / "data" / "labels" / "c0.nii.gz")
    run.import_data([tmp_path / "data"], tmp_path / "m", **STATED)
    assert "qform-and-sform-differ" not in {problem.code for problem in run.check(tmp_path / "m").problems}
    image = nibabel.load(scan)
    moved = image.affine.copy()
    moved[0, 3] += 7
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    image.set_sform(image.affine, 1)
    image.set_qform(moved, 1)
    nibabel.save(image, scan)
    found = [
        problem for problem in run.check(tmp_path / "m").problems if problem.code == "qform-and-sform-differ"
    ]
    assert [problem.file for problem in found] == [str(scan)]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("every", [2, 3])
def test_structures_drawn_in_some_slices_only_are_found_and_what_is_between_becomes_unknown(
    tmp_path, axis, every
):
    shape = (20, 20, 20)
    labels = np.zeros(shape, np.uint8)
    labels[2:18, 2:18, 2:18] = 1
    planes = np.moveaxis(labels, axis, 0)
    planes[[index for index in range(20) if index % every]] = 0
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(-1000, 900, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), data / "images" / "c0.nii.gz")
    write_labels(data / "labels" / "c0.nii.gz", Volume(labels, AFFINE))
    run.import_data([data], tmp_path / "m", classes={"liver": 1}, modality="mr")
    assert "unlabelled-slices" in {problem.code for problem in run.check(tmp_path / "m").problems}
    report = run.check(tmp_path / "m", fix=tmp_path / "fixed")
    assert "unlabelled-slices" in {repair.code for repair in report.repairs}
    assert "unlabelled-slices" not in {problem.code for problem in report.problems}
    fixed = read_manifest(tmp_path / "fixed")
    found = np.moveaxis(read_case_labels(fixed.cases[0], fixed).data, axis, 0)
    drawn = [index for index in range(2, 18) if index % every == 0]
    between = [index for index in range(drawn[0], drawn[-1]) if index not in drawn]
    assert (found[between] == 255).all()
    assert (found[0] == 0).all(), "outside of the structure the background is known"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("width", "unknown", "found"), [(12, False, True), (5, False, True), (3, False, False), (12, True, False)]
)
def test_a_wide_structure_drawn_in_a_single_slice_is_found(tmp_path, axis, width, unknown, found):
    """A small lesion may lie in one slice; and where the other slices are unknown, nothing is wrong."""
    labels = np.full((20, 20, 20), 255 if unknown else 0, np.uint8)
    np.moveaxis(labels, axis, 0)[9] = 0
    np.moveaxis(labels, axis, 0)[9, 4 : 4 + width, 4 : 4 + width] = 1
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    voxels = np.random.default_rng(0).integers(-1000, 900, labels.shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), data / "images" / "c0.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), data / "labels" / "c0.nii.gz")
    run.import_data([data], tmp_path / "m", classes={"liver": 1, "ignore": 255}, modality="mr")
    codes = {problem.code for problem in run.check(tmp_path / "m").problems}
    assert ("single-slice" in codes) == found
