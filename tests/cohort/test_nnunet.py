"""Export to nnU-Net: what is known stays, what is not is ignored, and the importer reads it back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelwise import ConfigError, DataError, run
from labelwise.cohort.manifest import Manifest, read_case_image, read_case_labels, write_manifest
from labelwise.cohort.nnunet import dataset_name
from labelwise.importers import nnunet
from labelwise.types import IGNORE, LabelSpace
from tiny_cohort import SHAPE, make_case, manifest_of, write_nifti

pytestmark = pytest.mark.usefixtures("one_process")

VALUES = (1, 3, 7, 255)  # liver, spleen, pancreas, ignored; then 0


def cohort(folder: Path, **changes: dict) -> tuple[Manifest, Path]:
    """Complete, partly annotated, unlabelled, validation and test cases, on a grid that is not RAS+."""
    cases = [
        make_case(folder, "full", *VALUES),
        make_case(folder, "part", *VALUES, annotated=("spleen",)),
        make_case(folder, "bare"),
        make_case(folder, "held", *VALUES, split="validation"),
        make_case(folder, "test", *VALUES, split="test"),
        make_case(folder, "bare_test", split="test"),
    ]
    manifest = manifest_of(*cases)
    write_manifest(manifest, folder / "my data")
    return manifest, folder / "my data"


def first_labels(file: Path, count: int = 5) -> list[int]:
    return np.asanyarray(nibabel.load(file).dataobj).ravel()[:count].tolist()


def test_unannotated_structures_are_ignored_and_background_is_background_only_where_all_are_annotated(
    tmp_path,
):
    _, data = cohort(tmp_path)
    written = run.export(data, tmp_path / "raw", number=7)
    folder = tmp_path / "raw" / "Dataset007_my_data"
    assert (written.folder, written.ignores, written.left_out) == (folder, True, ("bare",))
    # liver 1, spleen 2, pancreas 3; 4 is "ignore", the highest label
    assert first_labels(folder / "labelsTr" / "full.nii.gz") == [1, 2, 3, 4, 0]
    assert first_labels(folder / "labelsTr" / "part.nii.gz") == [4, 2, 4, 4, 4]
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3, "ignore": 4},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {"train": ["full", "part"], "val": ["held"]}
    ]
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    assert files == [
        *(f"imagesTr/{name}_0000.nii.gz" for name in ("full", "held", "part")),
        *(f"imagesTs/{name}_0000.nii.gz" for name in ("bare_test", "test")),
        *(f"labelsTr/{name}.nii.gz" for name in ("full", "held", "part")),
        "labelsTs/test.nii.gz",
    ]


@pytest.mark.parametrize("unknown", ["ignore", "background"])
def test_a_case_that_annotates_only_a_region_as_one_is_left_out(tmp_path, unknown):
    whole = make_case(tmp_path, "whole", *VALUES)
    as_one = make_case(tmp_path, "as_one", *VALUES, annotated=("abdomen",))
    drawn = manifest_of(whole)
    space = LabelSpace(drawn.label_space.names, (("abdomen", ("liver", "spleen")),))
    site = replace(drawn.data_sets["site"], values={**drawn.data_sets["site"].values, 9: "abdomen"})
    write_manifest(Manifest(space, {"site": site}, (whole, as_one)), tmp_path / "data")
    assert run.export(tmp_path / "data", tmp_path / "raw", unknown=unknown).left_out == ("as_one",)


def test_on_request_unannotated_structures_are_background_but_ignored_voxels_stay_ignored(tmp_path, caplog):
    _, data = cohort(tmp_path)
    with caplog.at_level(logging.WARNING, logger="labelwise"):
        folder = run.export(data, tmp_path / "raw", unknown="background").folder
    assert first_labels(folder / "labelsTr" / "part.nii.gz") == [0, 2, 0, 4, 0]
    assert first_labels(folder / "labelsTr" / "full.nii.gz") == [1, 2, 3, 4, 0]
    assert "in 1 cases un-annotated structures are written as background" in caplog.text


def test_without_ignored_voxels_there_is_no_label_for_them(tmp_path):
    manifest = manifest_of(make_case(tmp_path, "full", 1, 3, 7))
    write_manifest(manifest, tmp_path / "data")
    written = run.export(tmp_path / "data", tmp_path / "raw")
    dataset = json.loads((written.folder / "dataset.json").read_text())
    assert (written.ignores, dataset["labels"]) == (
        False,
        {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3},
    )
    assert not (written.folder / "splits_final.json").exists()


def test_the_importer_reads_back_images_labels_and_splits(tmp_path):
    manifest, data = cohort(tmp_path)
    folder = run.export(data, tmp_path / "raw").folder
    back = nnunet.scan(folder, fold=0)
    assert back.label_space == manifest.label_space
    assert next(iter(back.data_sets.values())).modality == "ct"
    known = {case.id: case for case in back.cases}
    for case in manifest.cases:
        if case.id == "bare":
            continue
        assert known[case.id].split == case.split
        np.testing.assert_array_equal(
            read_case_image(known[case.id], back).data, read_case_image(case, manifest).data
        )
        if case.annotated:
            ours, theirs = read_case_labels(case, manifest).data, read_case_labels(known[case.id], back).data
            complete = len(case.annotated) == 3
            np.testing.assert_array_equal(theirs, ours if complete else np.where(ours == 0, IGNORE, ours))


def test_whole_numbers_are_kept_in_16_bits(tmp_path):
    case = make_case(tmp_path, "full", *VALUES)
    write_nifti(case.images[0], np.full(SHAPE, -1000.0, np.float32))
    write_manifest(manifest_of(case), tmp_path / "data")
    folder = run.export(tmp_path / "data", tmp_path / "raw").folder
    assert nibabel.load(folder / "imagesTr" / "full_0000.nii.gz").get_data_dtype() == np.int16


def test_background_that_nnunet_would_never_see_is_told(tmp_path, caplog):
    write_manifest(manifest_of(make_case(tmp_path, "part", *VALUES, annotated=("liver",))), tmp_path / "data")
    with caplog.at_level(logging.WARNING, logger="labelwise"):
        run.export(tmp_path / "data", tmp_path / "raw")
    assert "nnU-Net never sees background" in caplog.text


def test_a_case_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    manifest, data = cohort(tmp_path)
    manifest.cases[0].images[0].unlink()
    with pytest.raises(DataError, match=r"1 cases cannot be exported(?s:.*)case 'full'"):
        run.export(data, tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_what_nnunet_cannot_hold_is_refused(tmp_path):
    manifest, data = cohort(tmp_path)
    run.export(data, tmp_path / "raw", number=2)
    with pytest.raises(ConfigError, match="there is such a data set already"):
        run.export(data, tmp_path / "raw", number=2)
    run.export(data, tmp_path / "raw", number=2, overwrite=True)
    with pytest.raises(ConfigError, match="cannot be written as ONNX"):
        run.export(data, tmp_path / "data.onnx")
    assert not (tmp_path / "data.onnx").exists()
    with pytest.raises(ConfigError, match="three digits"):
        run.export(data, tmp_path / "raw", number=1000)
    with pytest.raises(ConfigError, match="ignore or background"):
        run.export(data, tmp_path / "raw", unknown="forget")
    bare = manifest.replace_cases(
        replace(case, annotated=frozenset(), labels=None) for case in manifest.cases
    )
    write_manifest(bare, tmp_path / "bare")
    with pytest.raises(DataError, match="nothing to learn from"):
        run.export(tmp_path / "bare", tmp_path / "raw")
    mr = replace(manifest.data_sets["site"], name="other", modality="mr")
    mixed = Manifest(
        manifest.label_space,
        {**manifest.data_sets, "other": mr},
        (*manifest.cases[:1], replace(manifest.cases[1], data_set="other")),
    )
    write_manifest(mixed, tmp_path / "mixed")
    with pytest.raises(DataError, match="export each kind of intensities by itself"):
        run.export(tmp_path / "mixed", tmp_path / "raw")


def test_the_command_says_what_it_wrote(command, tmp_path):
    _, data = cohort(tmp_path)
    answer = command("export", data, "-o", tmp_path / "raw", "--id", "12", "--name", "abdomen")
    assert answer.code == 0, answer.err
    assert "Dataset012_abdomen: 2 train, 1 validation, 2 test; what is not annotated is ignored" in answer.out


def test_names_become_those_of_folders():
    assert dataset_name(3, "my data (v2)") == "Dataset003_my_data_v2"
