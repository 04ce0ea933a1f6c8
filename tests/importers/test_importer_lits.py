"""LiTS as it is downloaded: pairing, tumours, headers that disagree, volumes with a false voxel size."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import (
    Manifest,
    check_same_grid,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, lits
from labelwise.types import IGNORE, Case
from tiny_cohort import SHAPE, write_map, write_nifti, write_scan

SCANNER = np.diag([-0.7, -0.7, 2.5, 1.0])
BATCHES = {0: "Training Batch 1", 3: "Training Batch 1", 28: "Training_Batch2", 130: "Training_Batch2"}
NESTED = Path("media/nas/01_Datasets/CT/LITS")


def make_lits(folder: Path, *, nested: Path = NESTED) -> Path:
    for number, batch in BATCHES.items():
        affine = np.eye(4) if number == 28 else SCANNER
        write_scan(folder / nested / batch / f"volume-{number}.nii", seed=number, affine=affine)
        write_map(folder / nested / batch / f"segmentation-{number}.nii", 1, 2, affine=affine)
    write_scan(folder / "test" / "test-volume-0.nii", seed=500, affine=SCANNER)
    for junk in ("._volume-0.nii", ".DS_Store"):
        (folder / nested / "Training Batch 1" / junk).write_bytes(b"junk")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "volume-7.nii").write_bytes(b"junk")
    (folder / nested / "Training Batch 1" / "readme.txt").write_text("LiTS")
    return folder


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def classes(manifest: Manifest, name: str) -> list[int]:
    """The first voxels of a case, which the files label 1 and 2."""
    labels = read_case_labels(by_id(manifest)[name], manifest)
    return sorted(labels.data[labels.data > 0].tolist())


def test_both_batches_are_found_at_any_depth_and_paired_by_number(tmp_path: Path):
    manifest = lits.scan(make_lits(tmp_path))
    assert [case.id for case in manifest.cases] == [
        *("volume-0", "volume-3", "volume-28", "volume-130"),
        "test-volume-0",
    ]
    case = by_id(manifest)["volume-130"]
    assert (case.images[0].name, case.labels and case.labels.name) == (
        "volume-130.nii",
        "segmentation-130.nii",
    )
    assert manifest.label_space.names == ("background", "liver")
    assert manifest.data_sets["lits"].modality == "ct"


def test_the_layout_is_recognised_and_survives_writing(tmp_path: Path):
    assert detect(make_lits(tmp_path / "data")) == "lits"
    manifest = lits.scan(tmp_path / "data")
    assert read_manifest(write_manifest(manifest, tmp_path / "project")) == manifest


def test_volumes_alone_are_not_taken_for_lits(tmp_path: Path):
    write_scan(tmp_path / "volume-0.nii")
    write_map(tmp_path / "labels" / "liver_segmentation-0.nii")
    assert not lits.matches(tmp_path)


@pytest.mark.parametrize(
    ("tumour", "names", "expected"),
    [
        ("organ", ("liver",), [1, 1]),
        ("background", ("liver",), [1]),
        ("ignore", ("liver",), [1, IGNORE]),
        ("class", ("liver", "liver tumour"), [1, 2]),
    ],
)
def test_a_tumour_counts_as_the_option_says(tmp_path: Path, tumour, names: tuple[str, ...], expected):
    manifest = lits.scan(make_lits(tmp_path), tumour=tumour)
    assert manifest.label_space.structures == names
    assert by_id(manifest)["volume-0"].annotated == set(names)
    assert classes(manifest, "volume-0") == expected


def test_labels_take_the_grid_of_their_image_where_headers_disagree(tmp_path: Path, caplog):
    make_lits(tmp_path)
    label = tmp_path / NESTED / "Training Batch 1" / "segmentation-3.nii"
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 1, 2] = 1
    write_nifti(label, mask, np.diag([0.7, 0.7, 5.0, 1.0]))
    manifest = lits.scan(tmp_path)
    assert "headers of labels disagree with their image, whose grid counts: 1 (volume-3)" in caplog.text
    case = by_id(manifest)["volume-3"]
    labels, image = read_case_labels(case, manifest), read_case_image(case, manifest)
    check_same_grid(case, image, labels)
    # The image is stored right to left and front to back: RAS+ reverses both axes.
    assert np.argwhere(labels.data == 1).tolist() == [[SHAPE[0] - 1, SHAPE[1] - 2, 2]]


def test_volumes_with_a_false_voxel_size_are_left_out_and_reported(tmp_path: Path, caplog):
    cases = by_id(lits.scan(make_lits(tmp_path)))
    assert (cases["volume-28"].split, cases["volume-0"].split) == ("", "train")
    assert "volumes with a false voxel size of 1 mm are left out" in caplog.text
    assert "1 (volume-28)" in caplog.text
    assert by_id(lits.scan(tmp_path, suspect="keep"))["volume-28"].split == "train"


def test_test_volumes_take_no_part_or_train_without_labels(tmp_path: Path, caplog):
    case = by_id(lits.scan(make_lits(tmp_path)))["test-volume-0"]
    assert (case.labels, case.annotated, case.split) == (None, frozenset(), "")
    assert "test volumes take no part: 1 (test-volume-0)" in caplog.text
    assert by_id(lits.scan(tmp_path, unlabelled="train"))["test-volume-0"].split == "train"


def test_files_without_a_partner_are_reported(tmp_path: Path, caplog):
    make_lits(tmp_path)
    (tmp_path / NESTED / "Training Batch 1" / "segmentation-3.nii").unlink()
    (tmp_path / NESTED / "Training Batch 1" / "volume-0.nii").unlink()
    cases = by_id(lits.scan(tmp_path, unlabelled="train"))
    assert "volume-0" not in cases
    assert (cases["volume-3"].labels, cases["volume-3"].split) == (None, "train")
    assert "volumes without a segmentation train without labels: 1 (volume-3)" in caplog.text
    assert "segmentations without a volume are left out: 1 (segmentation-0)" in caplog.text


def test_a_file_that_was_unpacked_as_a_folder_of_its_name_is_found(tmp_path: Path):
    write_scan(tmp_path / "volume-5.nii" / "volume-5.nii")
    write_map(tmp_path / "segmentation-5.nii" / "segmentation-5.nii", 1)
    case = lits.scan(tmp_path).cases[0]
    assert (case.id, case.images[0].parent.name) == ("volume-5", "volume-5.nii")


def test_a_second_file_of_a_volume_is_refused(tmp_path: Path):
    make_lits(tmp_path)
    write_scan(tmp_path / "again" / "volume-0.nii.gz")
    with pytest.raises(DataError, match="two files hold the same scan"):
        lits.scan(tmp_path)


def test_an_unexpected_label_value_is_named_with_its_file(tmp_path: Path):
    make_lits(tmp_path)
    write_map(tmp_path / NESTED / "Training Batch 1" / "segmentation-3.nii", 1, 7, affine=SCANNER)
    manifest = lits.scan(tmp_path)
    with pytest.raises(DataError, match="value 7") as caught:
        read_case_labels(by_id(manifest)["volume-3"], manifest)
    assert "segmentation-3.nii" in str(caught.value)


def test_a_damaged_header_does_not_stop_the_import(tmp_path: Path):
    make_lits(tmp_path)
    (tmp_path / NESTED / "Training Batch 1" / "volume-3.nii").write_bytes(b"not a scan")
    assert by_id(lits.scan(tmp_path))["volume-3"].split == "train"


def test_wrong_options_and_folders_are_refused(tmp_path: Path):
    make_lits(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"tumour = 'organs'.*did you mean 'organ'"):
        lits.scan(tmp_path / "data", tumour="organs")
    with pytest.raises(ConfigError, match="suspect"):
        lits.scan(tmp_path / "data", suspect="yes")
    with pytest.raises(ConfigError, match="unlabelled"):
        lits.scan(tmp_path / "data", unlabelled="no")
    write_scan(tmp_path / "other" / "scan.nii.gz")
    with pytest.raises(DataError, match="no volume of LiTS"):
        lits.scan(tmp_path / "other")


def test_nothing_is_said_about_a_data_set_without_faults(tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / "volume-0.nii", affine=SCANNER)
    write_map(tmp_path / "segmentation-0.nii", 1, affine=SCANNER)
    lits.scan(tmp_path)
    assert caplog.text == ""
