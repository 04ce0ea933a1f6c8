"""AbdomenCT-1K: four organs, the part with twelve, and scans with a false voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import add_junk, by_id, ids, reads_back, touch

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import abdomenct1k, detect
from labelwise.importers.abdomenct1k import FALSE_SIZE
from tiny_cohort import write_map, write_scan

TRUE_SIZE = np.diag((0.8, 0.8, 2.5, 1.0))


def make_both(folder: Path) -> Path:
    write_scan(folder / "AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz", seed=1)
    write_scan(folder / "AbdomenCT-1K-ImagePart2/Case_00656_0000.nii.gz", seed=2)
    write_scan(folder / "AbdomenCT-1K-ImagePart3/Case_01062_0000.nii.gz", seed=3)
    write_map(folder / "Mask/Case_00001.nii.gz", *range(5))
    write_map(folder / "Mask/Case_00656.nii.gz", 1, 2, 4)
    write_scan(folder / "12organ/Organ12_0001_0000.nii.gz", seed=4)
    write_map(folder / "12organ/Organ12_0001.nii.gz", *range(13))
    add_junk(folder, "Mask/Case_00001.nii.gz", "12organ/Organ12_0001_0000.nii.gz")
    return folder


def test_the_two_parts_are_two_data_sets_and_scans_without_labels_are_unlabelled(tmp_path: Path):
    manifest = abdomenct1k.scan(make_both(tmp_path))
    assert detect(tmp_path) == "abdomenct1k"
    assert [(case.id, case.data_set, len(case.annotated), case.split) for case in manifest.cases] == [
        ("Case_00001", "abdomenct1k", 4, "train"),
        ("Case_00656", "abdomenct1k", 4, "train"),
        ("Case_01062", "abdomenct1k", 0, "train"),
        ("Organ12_0001", "abdomenct1k_organ12", 12, "train"),
    ]
    assert reads_back(manifest, tmp_path / "project")


def test_values_mean_the_documented_structures_of_each_part(tmp_path: Path):
    manifest = abdomenct1k.scan(make_both(tmp_path))
    cases, names = by_id(manifest), manifest.label_space.names

    def named(case: str, number: int) -> list[str]:
        return [names[value] for value in read_case_labels(cases[case], manifest).data.ravel()[:number]]

    assert named("Case_00001", 5) == ["background", "liver", "kidneys", "spleen", "pancreas"]
    assert named("Case_00656", 3) == ["liver", "kidneys", "pancreas"]  # no spleen
    assert named("Organ12_0001", 13) == [
        "background", "liver", "kidneys", "spleen", "pancreas", "aorta", "inferior vena cava", "stomach",
        "gallbladder", "esophagus", "right adrenal gland", "left adrenal gland", "celiac trunk",
    ]  # fmt: skip


def test_labels_of_flare22_are_not_taken_for_the_part_with_twelve_structures(tmp_path: Path):
    write_scan(tmp_path / "Organ12_0001_0000.nii.gz")
    write_map(tmp_path / "Organ12_0001.nii.gz", 1, 13)
    manifest = abdomenct1k.scan(tmp_path)
    with pytest.raises(DataError, match="value 13"):
        read_case_labels(manifest.cases[0], manifest)
    touch(tmp_path / "x", "FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001.nii.gz")
    assert detect(tmp_path / "x") == "flare22"
    with pytest.raises(DataError, match=r"no scan of AbdomenCT-1K"):
        abdomenct1k.scan(tmp_path / "x")


def test_the_part_alone_has_the_name_of_the_data_set_and_reproduces_the_published_toy_setting(tmp_path: Path):
    touch(tmp_path, *(f"images/Organ12_{n:04d}_0000.nii.gz" for n in range(1, 51)))
    touch(tmp_path, *(f"labels/Organ12_{n:04d}.nii.gz" for n in range(1, 51)))
    manifest = abdomenct1k.scan(tmp_path, data_set="toy")
    assert list(manifest.data_sets) == ["toy"]
    toy = hide(manifest, "ltuda_toy")
    assert (len(toy.split("train")), len(toy.split("test"))) == (40, 10)
    assert toy.label_space.names == ("background", "liver", "kidneys", "spleen", "pancreas")


def test_published_scans_with_a_false_voxel_size_are_left_out_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for number, affine in ((78, None), (79, None), (462, TRUE_SIZE)):
        write_scan(tmp_path / f"imagesTr/Case_{number:05d}_0000.nii.gz", seed=number, affine=affine)
        write_map(tmp_path / f"labels/Case_{number:05d}.nii.gz", 1, affine=affine)
    manifest = abdomenct1k.scan(tmp_path)
    assert ids(manifest.split("train")) == ["Case_00079", "Case_00462"]
    assert ids(manifest.split("")) == ["Case_00078"]
    assert "left out; suspect = keep takes them in: 1 (Case_00078)" in caplog.text
    assert len(abdomenct1k.scan(tmp_path, suspect="keep").split("train")) == 3
    assert len(FALSE_SIZE) == 20
    with pytest.raises(ConfigError, match="leave_out, keep"):
        abdomenct1k.scan(tmp_path, suspect="drop")


def test_a_damaged_scan_on_the_list_is_left_out_rather_than_believed(tmp_path: Path):
    touch(tmp_path, "Case_00273_0000.nii.gz", "Case_00273.nii.gz", "Case_00001_0000.nii.gz")
    assert ids(abdomenct1k.scan(tmp_path).split("")) == ["Case_00273"]


def test_scans_of_the_test_folder_test_and_what_has_no_partner_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    touch(tmp_path, "imagesTr/Case_00001_0000.nii.gz", "imagesTs/Case_00003_0000.nii.gz", "imagesTr/x.nii.gz")
    touch(tmp_path, "labels/Case_00001.nii.gz", "labels/Case_00002.nii.gz")
    manifest = abdomenct1k.scan(tmp_path)
    assert {case.id: case.split for case in manifest.cases} == {"Case_00001": "train", "Case_00003": "test"}
    assert "label files without an image are left out: 1 (Case_00002)" in caplog.text


@pytest.mark.parametrize(
    "names", [("case_00001/imaging.nii.gz",), ("case_00001_0000.nii.gz",), ("Case_00001.nii.gz",)]
)
def test_other_layouts_are_not_taken_for_it(tmp_path: Path, names: tuple[str, ...]):
    touch(tmp_path, *names)
    assert not abdomenct1k.matches(tmp_path)


def test_a_copy_that_a_dataset_json_describes_is_read_by_it(tmp_path: Path):
    touch(tmp_path, "imagesTr/Case_00001_0000.nii.gz", "labelsTr/Case_00001.nii.gz", "dataset.json")
    assert detect(tmp_path) == "nnunet"
