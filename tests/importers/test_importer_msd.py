"""The ten tasks of the Medical Segmentation Decathlon as they are downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import (
    Manifest,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, msd
from labelwise.types import IGNORE, Case
from tiny_cohort import SHAPE, write_map, write_nifti, write_scan

FOLDERS = {
    1: ("Task01_BrainTumour", "BRATS", 3, 4),  # folder, prefix of the files, classes, channels
    2: ("Task02_Heart", "la", 1, 1),
    3: ("Task03_Liver", "liver", 2, 1),
    4: ("Task04_Hippocampus", "hippocampus", 2, 1),
    5: ("Task05_Prostate", "prostate", 2, 2),
    6: ("Task06_Lung", "lung", 1, 1),
    7: ("Task07_Pancreas", "pancreas", 2, 1),
    8: ("Task08_HepaticVessel", "hepaticvessel", 2, 1),
    9: ("Task09_Spleen", "spleen", 1, 1),
    10: ("Task10_Colon", "colon", 1, 1),
}


def make_task(
    parent: Path, number: int = 9, *, train: tuple[int, ...] = (10, 2), test: tuple[int, ...] = (1,)
) -> Path:
    name, prefix, classes, channels = FOLDERS[number]
    folder = parent / name
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    for case in train:
        write_scan(folder / "imagesTr" / f"{prefix}_{case}.nii.gz", seed=case, shape=shape)
        write_map(folder / "labelsTr" / f"{prefix}_{case}.nii.gz", *range(1, classes + 1))
    for case in test:
        write_scan(folder / "imagesTs" / f"{prefix}_{case}.nii.gz", seed=case, shape=shape)
    for junk in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / junk).mkdir(parents=True, exist_ok=True)
        (folder / junk / f"._{prefix}_{train[0]}.nii.gz").write_bytes(b"junk")
    (folder / "._dataset.json").write_bytes(b"junk")
    entries = [{part: f"./{part}sTr/{prefix}_{case}.nii.gz" for part in ("image", "label")} for case in train]
    dataset = {
        "name": "anything",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): "background" if not value else f"c{value}" for value in range(classes + 1)},
        "training": entries,
        "test": [f"./imagesTs/{prefix}_{case}.nii.gz" for case in test],
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def change(folder: Path, **values: object) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def classes(manifest: Manifest, name: str) -> list[int]:
    labels = read_case_labels(by_id(manifest)[name], manifest)
    return sorted(labels.data[labels.data > 0].tolist())


def test_the_spleen_task_is_read_in_the_order_of_its_list(tmp_path: Path, caplog):
    manifest = msd.scan(make_task(tmp_path))
    assert [(case.id, case.split) for case in manifest.cases] == [
        ("spleen_10", "train"),
        ("spleen_2", "train"),
        ("spleen_1", ""),
    ]
    assert manifest.label_space.names == ("background", "spleen")
    assert manifest.data_sets["msd_spleen"].modality == "ct"
    assert "test cases without labels take no part: 1 (spleen_1)" in caplog.text
    assert classes(manifest, "spleen_2") == [1]


def test_test_cases_may_train_without_labels(tmp_path: Path):
    case = by_id(msd.scan(make_task(tmp_path), unlabelled="train"))["spleen_1"]
    assert (case.split, case.labels, case.annotated) == ("train", None, frozenset())


@pytest.mark.parametrize("number", FOLDERS)
def test_every_task_is_known_by_its_files_whatever_its_folder_is_called(tmp_path: Path, number: int):
    folder = make_task(tmp_path / "data", number).rename(tmp_path / "renamed")
    assert detect(folder) == "msd"
    manifest = msd.scan(folder)
    task = msd.TASKS[number - 1]
    assert task.number == number
    assert manifest.data_sets[f"msd_{task.name}"].modality == ("mr" if number in (1, 2, 4, 5) else "ct")
    image = read_case_image(manifest.cases[0], manifest)
    assert image.data.shape == (FOLDERS[number][3], *SHAPE)
    read_case_labels(manifest.cases[0], manifest)
    assert read_manifest(write_manifest(manifest, tmp_path / "project")) == manifest


@pytest.mark.parametrize(
    ("number", "structures"),
    [
        (1, ("brain oedema", "non-enhancing brain tumour", "enhancing brain tumour")),
        (2, ("left atrium",)),
        (3, ("liver",)),
        (4, ("anterior hippocampus", "posterior hippocampus")),
        (5, ("prostate peripheral zone", "prostate transition zone")),
        (6, ("lung tumour",)),
        (7, ("pancreas",)),
        (8, ("hepatic vessels", "liver tumour")),
        (9, ("spleen",)),
        (10, ("colon tumour",)),
    ],
)
def test_classes_have_the_names_of_the_package(tmp_path: Path, number: int, structures: tuple[str, ...]):
    manifest = msd.scan(make_task(tmp_path, number))
    assert manifest.label_space.structures == structures
    assert manifest.cases[0].annotated == set(structures)


@pytest.mark.parametrize(
    ("number", "tumour", "structures", "expected"),
    [
        (3, "class", ("liver", "liver tumour"), [1, 2]),
        (3, "background", ("liver",), [1]),
        (7, "class", ("pancreas", "pancreas tumour"), [1, 2]),
        (7, "ignore", ("pancreas",), [1, IGNORE]),
        (7, None, ("pancreas",), [1, 1]),
        (8, "background", ("hepatic vessels",), [1]),
    ],
)
def test_a_tumour_counts_as_the_option_says(tmp_path: Path, number, tumour, structures, expected):
    manifest = msd.scan(make_task(tmp_path, number), tumour=tumour)
    assert manifest.label_space.structures == structures
    assert classes(manifest, manifest.cases[0].id) == expected


def test_a_tumour_option_that_cannot_mean_anything_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no tumour beside another class"):
        msd.scan(make_task(tmp_path, 9), tumour="class")
    with pytest.raises(ConfigError, match="no part of the hepatic vessels"):
        msd.scan(make_task(tmp_path, 8), tumour="organ")
    with pytest.raises(ConfigError, match="tumour = 'liver'"):
        msd.scan(make_task(tmp_path, 3), tumour="liver")


def test_a_fourth_axis_with_one_channel_is_dropped(tmp_path: Path):
    folder = make_task(tmp_path)
    write_nifti(folder / "imagesTr" / "spleen_2.nii.gz", np.ones((*SHAPE, 1), np.float32))
    manifest = msd.scan(folder)
    assert read_case_image(by_id(manifest)["spleen_2"], manifest).data.shape == (1, *SHAPE)


def test_a_folder_of_several_tasks_needs_a_choice(tmp_path: Path):
    make_task(tmp_path, 9)
    assert detect(tmp_path) == "msd"
    assert list(msd.scan(tmp_path).data_sets) == ["msd_spleen"]
    make_task(tmp_path, 1)
    with pytest.raises(ConfigError, match="several tasks") as caught:
        msd.scan(tmp_path)
    assert "1 brain_tumour, 9 spleen" in str(caught.value)
    for wanted in ("spleen", 9, "Task09_Spleen", "Task09"):
        assert list(msd.scan(tmp_path, task=wanted).data_sets) == ["msd_spleen"]
    assert list(msd.scan(tmp_path, task="BrainTumour").data_sets) == ["msd_brain_tumour"]
    with pytest.raises(ConfigError, match="no task 'liver'"):
        msd.scan(tmp_path, task="liver")


def test_what_the_list_and_the_folders_do_not_share_is_reported(tmp_path: Path, caplog):
    folder = make_task(tmp_path, train=(2, 3, 6))
    (folder / "imagesTr" / "spleen_2.nii.gz").unlink()
    (folder / "labelsTr" / "spleen_3.nii.gz").unlink()
    write_scan(folder / "imagesTr" / "spleen_99.nii.gz")
    write_map(folder / "labelsTr" / "spleen_98.nii.gz", 1)
    cases = by_id(msd.scan(folder))
    assert {name: (case.split, bool(case.labels)) for name, case in cases.items()} == {
        "spleen_3": ("", False),
        "spleen_6": ("train", True),
        "spleen_1": ("", False),
    }
    for line in (
        "cases of dataset.json without an image are left out: 1 (spleen_2)",
        "training images without a label are unlabelled cases: 1 (spleen_3)",
        "images that dataset.json does not name are left out: 1 (spleen_99)",
        "labels that dataset.json does not name are left out: 1 (spleen_98)",
    ):
        assert line in caplog.text


def test_unpacked_files_are_found_by_their_names(tmp_path: Path):
    folder = make_task(tmp_path)
    (folder / "imagesTr" / "spleen_2.nii.gz").unlink()
    write_scan(folder / "imagesTr" / "spleen_2.nii" / "spleen_2.nii")
    assert by_id(msd.scan(folder))["spleen_2"].images[0].name == "spleen_2.nii"


def test_other_data_sets_with_such_a_list_are_left_to_other_importers(tmp_path: Path):
    other = make_task(tmp_path / "a")
    change(other, training=[{"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}])
    assert not msd.matches(other)
    converted = make_task(tmp_path / "b")  # by nnU-Net: the list keeps its names, the files get a channel
    for image in (converted / "imagesTr").glob("spleen_*"):
        image.rename(image.with_name(image.name.replace(".nii.gz", "_0000.nii.gz")))
    assert not msd.matches(converted)
    assert detect(converted) == "nnunet"
    without_images = make_task(tmp_path / "c")
    for image in (without_images / "imagesTr").iterdir():
        image.unlink()
    assert not msd.matches(without_images)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset.json").write_text("[1, 2")
    assert not msd.matches(tmp_path / "d")
    with pytest.raises(DataError, match="no task of the Decathlon"):
        msd.scan(tmp_path / "d")


@pytest.mark.parametrize("training", [None, [], [1], [{"image": "a.nii.gz"}], [{"image": 1, "label": 2}], {}])
def test_a_list_that_names_no_cases_is_not_a_task(tmp_path: Path, training: object):
    folder = make_task(tmp_path)
    change(folder, training=training)
    assert not msd.matches(folder)


@pytest.mark.parametrize("labels", [{"0": "background", "1": "a", "2": "b"}, {"background": 0}, None])
def test_changed_classes_are_refused(tmp_path: Path, labels: object):
    folder = make_task(tmp_path)
    change(folder, labels=labels)
    with pytest.raises(DataError, match="other label values than task 9"):
        msd.scan(folder)


def test_an_unexpected_label_value_is_named_with_its_file(tmp_path: Path):
    folder = make_task(tmp_path)
    write_map(folder / "labelsTr" / "spleen_2.nii.gz", 1, 5)
    manifest = msd.scan(folder)
    with pytest.raises(DataError, match="value 5") as caught:
        read_case_labels(by_id(manifest)["spleen_2"], manifest)
    assert "spleen_2.nii.gz" in str(caught.value)
