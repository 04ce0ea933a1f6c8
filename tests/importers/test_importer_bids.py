"""BIDS: scans in the raw data set, segmentations among the derivatives."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from labelwise.cohort.manifest import read_case_image, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.importers import bids, detect
from tiny_cohort import write_map, write_scan

TABLE = "index\tname\tcolor\n0\tBackground\t#000000\n1\tliver\t#ff0000\n2\tspleen\t#00ff00\n"


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="labelwise")
    return caplog


def raw(folder: Path, *names: str) -> None:
    for name in names:
        subject, *rest = name.split("_")
        session = [part for part in rest if part.startswith("ses-")]
        write_scan(folder.joinpath(subject, *session, "anat", f"{name}.nii.gz"), seed=len(name))


def derived(folder: Path, name: str, *values: int, pipeline: str = "manual") -> Path:
    subject, *rest = name.split("_")
    session = [part for part in rest if part.startswith("ses-")]
    return write_map(
        folder.joinpath("derivatives", pipeline, subject, *session, "anat", f"{name}.nii.gz"), *values
    )


def make(folder: Path) -> Path:
    """Two subjects with label maps, one of them in two sessions, one without labels."""
    raw(folder, "sub-01_T1w", "sub-02_ses-a_T1w", "sub-02_ses-b_T1w", "sub-03_T1w")
    for name in ("sub-01", "sub-02_ses-a", "sub-02_ses-b"):
        derived(folder, f"{name}_dseg", 1, 2)
    (folder / "derivatives" / "manual" / "dseg.tsv").write_text(TABLE)
    (folder / "dataset_description.json").write_text('{"Name": "toy", "BIDSVersion": "1.10.0"}')
    (folder / "sub-01" / "anat" / "._sub-01_T1w.nii.gz").write_bytes(b"junk")
    (folder / "sub-01" / "anat" / ".DS_Store").write_bytes(b"junk")
    return folder


def masks(folder: Path) -> Path:
    raw(folder, "sub-01_T1w", "sub-02_T1w", "sub-03_T1w")
    derived(folder, "sub-01_label-liver_mask", 1)
    derived(folder, "sub-01_label-spleen_mask", 0, 1)
    derived(folder, "sub-02_label-spleen_mask")
    return folder


def test_label_maps_are_paired_by_subject_and_session(tmp_path: Path, heard):
    manifest = bids.scan(make(tmp_path / "toy"))
    assert {case.id: (case.group, bool(case.annotated)) for case in manifest.cases} == {
        "sub-01": ("sub-01", True),
        "sub-02_ses-a": ("sub-02", True),
        "sub-02_ses-b": ("sub-02", True),
        "sub-03": ("sub-03", False),
    }
    assert manifest.label_space.structures == ("liver", "spleen")
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, 2, 0]
    assert manifest.data_sets["toy"].modality == "mr"
    assert "unlabelled cases: 1 (sub-03)" in heard.text
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest


def test_the_layout_is_recognised_only_with_segmentations(tmp_path: Path):
    assert detect(make(tmp_path / "toy")) == "bids"
    assert detect(masks(tmp_path / "masks")) == "bids"
    raw(tmp_path / "raw", "sub-01_T1w")
    assert detect(tmp_path / "raw") == "folders"


def test_masks_say_for_each_case_what_is_annotated(tmp_path: Path):
    manifest = bids.scan(masks(tmp_path))
    assert [sorted(case.annotated) for case in manifest.cases] == [["liver", "spleen"], ["spleen"], []]
    first, second = (
        read_case_labels(case, manifest).data.ravel()[:3].tolist() for case in manifest.cases[:2]
    )
    assert (first, second) == ([1, 2, 0], [0, 0, 0])
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest


def test_masks_whose_names_do_not_tell_them_apart_are_refused(tmp_path: Path):
    masks(tmp_path)
    derived(tmp_path, "sub-01_space-MNI152_label-liver_mask", 1)
    derived(tmp_path, "sub-01_desc-b_label-liver_mask", 1)
    with pytest.raises(DataError, match="several segmentations"):
        bids.scan(tmp_path)
    with pytest.raises(DataError, match="two masks of one label"):
        bids.scan(tmp_path, space="MNI152", image="T1w") if write_scan(
            tmp_path / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_space-MNI152_T1w.nii.gz"
        ) else None


def test_the_nearest_table_whose_entities_fit_counts(tmp_path: Path):
    make(tmp_path)
    near = tmp_path / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_dseg.tsv"
    near.write_text("name\tindex\nkidney\t1\nspleen\t2\n")
    (tmp_path / "derivatives" / "manual" / "desc-other_dseg.tsv").write_text("index\tname\n1\tno\n")
    manifest = bids.scan(tmp_path, data_set="toy")
    assert {name: data_set.values[1] for name, data_set in manifest.data_sets.items()} == {
        "toy": "kidney",
        "toy_2": "liver",
    }
    assert manifest.label_space.structures == ("kidney", "spleen", "liver")
    assert [case.data_set for case in manifest.cases[:2]] == ["toy", "toy_2"]
    assert manifest.cases[0].annotated == {"kidney", "spleen"}


def test_classes_replace_a_table_that_is_not_there(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").unlink()
    with pytest.raises(ConfigError, match=r"no table says[\s\S]*--classes"):
        bids.scan(tmp_path)
    assert bids.scan(tmp_path, classes={"liver": 1, "spleen": 2}).label_space.structures == (
        "liver",
        "spleen",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no columns index and name"),
        ("index\tlabel\n1\tx\n", "no columns index and name"),
        ("index\tname\none\tliver\n", "row 2"),
        ("index\tname\n1\n", "row 2"),
        ("index\tname\n1\tliver\n1\tspleen\n", "two classes"),
        ("index\tname\n1\ta;b\n", "cannot be a class name"),
        ("index\tname\n99999999\tliver\n", "cannot be a label value"),
        ("index\tname\n0\tbackground\n", "at least one structure"),
    ],
)
def test_a_garbled_table_is_refused_with_its_file(tmp_path: Path, text: str, message: str):
    make(tmp_path)
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        bids.scan(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_several_kinds_of_scans_are_chosen_or_become_channels(tmp_path: Path, heard):
    make(tmp_path)
    raw(tmp_path, "sub-01_FLAIR")
    with pytest.raises(ConfigError, match=r"FLAIR, T1w"):
        bids.scan(tmp_path)
    assert len(bids.scan(tmp_path, image="T1w").cases) == 4
    manifest = bids.scan(tmp_path, image="T1w,FLAIR")
    assert read_case_image(manifest.cases[0], manifest).data.shape == (2, 6, 5, 4)
    assert "without all of T1w, FLAIR are left out: 3" in heard.text
    with pytest.raises(ConfigError, match="no scans 'T3w'"):
        bids.scan(tmp_path, image="T3w")


def test_a_segmentation_in_another_space_is_passed_over_or_asked_for(tmp_path: Path, heard):
    make(tmp_path)
    derived(tmp_path, "sub-01_space-MNI152_dseg", 2)
    assert bids.scan(tmp_path).cases[0].labels.name == "sub-01_dseg.nii.gz"
    assert "passed over: 1 (MNI152)" in heard.text
    derived(tmp_path, "sub-01_space-MNI152_desc-preproc_T1w")
    manifest = bids.scan(tmp_path, space="MNI152")
    assert [case.images[0].name for case in manifest.cases] == ["sub-01_space-MNI152_desc-preproc_T1w.nii.gz"]
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[0] == 2


def test_several_segmentations_are_chosen_by_pipeline_kind_or_description(tmp_path: Path, heard):
    make(tmp_path)
    derived(tmp_path, "sub-01_label-liver_mask", 1)
    assert len(bids.scan(tmp_path).cases) == 4
    assert "beside the dseg files are passed over: 1" in heard.text
    assert bids.scan(tmp_path, labels="mask").label_space.structures == ("liver",)
    derived(tmp_path, "sub-01_desc-second_dseg", 2)
    with pytest.raises(DataError, match=r"several segmentations of one scan[\s\S]*desc"):
        bids.scan(tmp_path)
    assert bids.scan(tmp_path, desc="second").cases[0].labels.name == "sub-01_desc-second_dseg.nii.gz"
    derived(tmp_path, "sub-03_dseg", 1, pipeline="auto")
    with pytest.raises(ConfigError, match="auto, manual"):
        bids.scan(tmp_path)
    with pytest.raises(ConfigError, match="no table says"):
        bids.scan(tmp_path, pipeline="auto")


def test_runs_are_told_apart_and_what_fits_several_is_refused(tmp_path: Path):
    raw(tmp_path, "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    derived(tmp_path, "sub-01_run-2_dseg", 1)
    classes = {"liver": 1}
    assert [bool(case.labels) for case in bids.scan(tmp_path, classes=classes).cases] == [False, True]
    derived(tmp_path, "sub-01_dseg", 1)
    with pytest.raises(DataError, match="fits several scans"):
        bids.scan(tmp_path, classes=classes)


def test_a_segmentation_without_a_scan_is_reported(tmp_path: Path, heard):
    make(tmp_path)
    derived(tmp_path, "sub-09_dseg", 1)
    bids.scan(tmp_path)
    assert "without a scan are left out: 1 (sub-09_dseg.nii.gz)" in heard.text
