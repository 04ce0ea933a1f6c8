"""Importers: common layouts become manifests, and what does not fit is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import (
    Manifest,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.importers import IMPORTERS, acdc, detect, folders, la2018, load, nnunet
from labelwise.types import IGNORE, Case
from tiny_cohort import write_map, write_scan

CLASSES = {"liver": 1, "spleen": [2, 3]}


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def splits(manifest: Manifest) -> dict[str, str]:
    return {case.id: case.split for case in manifest.cases}


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="labelwise")
    return lambda: caplog.text


# which importer


def make_nnunet(folder: Path, cases: int = 4, *, channels: int = 1, **changes: object) -> Path:
    for case in range(cases):
        for channel in range(channels):
            write_scan(folder / "imagesTr" / f"c{case}_{channel:04d}.nii.gz", seed=case)
        write_map(folder / "labelsTr" / f"c{case}.nii.gz", 1, 2)
    names = {str(channel): "CT" for channel in range(channels)}
    labels = {"background": 0, "liver": 1, "spleen": 2}
    dataset = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz", **changes}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def write_h5(path: Path, **arrays: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def make_la2018(folder: Path, train: str = "cab", test: str = "d") -> Path:
    for name in train + test:
        label = np.zeros((4, 5, 6), dtype=np.uint8)
        label[0] = 1
        image = np.full((4, 5, 6), ord(name), dtype=np.float32)
        write_h5(folder / "2018LA_Seg_Training Set" / name / "mri_norm2.h5", image=image, label=label)
    (folder / "train.list").write_text("\n".join(train))  # no final line break, as in the published file
    (folder / "test.list").write_text("\r\n".join(test) + "\r\n")
    return folder


def make_acdc(folder: Path) -> Path:
    for patient in (1, 2, 3):
        for frame in (12, 1):
            label = np.zeros((2, 4, 5), dtype=np.uint8)
            label[1, 0, :4] = 0, 1, 2, 3
            scribble = np.full((2, 4, 5), 4, dtype=np.uint8)
            scribble[1, 0, :4] = label[1, 0, :4]
            image = np.random.default_rng(10 * patient + frame).random((2, 4, 5), dtype=np.float32)
            name = f"patient{patient:03d}_frame{frame:02d}"
            write_h5(folder / "volumes" / f"{name}.h5", image=image, label=label, scribble=scribble)
            write_h5(folder / "slices" / f"{name}_slice_1.h5", image=image[1], label=label[1])
    (folder / "train.list").write_text("patient003\npatient001_frame01\n")
    (folder / "val.list").write_text("patient002\n")
    return folder


@pytest.mark.parametrize(
    ("make", "name"),
    [(make_nnunet, "nnunet"), (make_la2018, "la2018"), (make_acdc, "acdc")],
    ids=["nnunet", "la2018", "acdc"],
)
def test_a_layout_is_recognised(tmp_path: Path, make, name: str):
    assert detect(make(tmp_path)) == name


def test_any_folder_with_scans_counts_as_plain_folders(tmp_path: Path):
    write_scan(tmp_path / "deep" / "down" / "scan.nii.gz")
    assert detect(tmp_path) == "folders"


def test_a_folder_that_nobody_knows_is_refused_with_what_was_looked_for(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError) as caught:
        detect(tmp_path)
    for part in (*IMPORTERS, "notes.txt", "mri_norm2.h5", "dataset.json"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [None, *IMPORTERS])
def test_an_empty_or_missing_folder_is_refused(tmp_path: Path, name: str | None):
    def run(folder: Path) -> object:
        options = {"classes": CLASSES, "modality": "ct"} if name == "folders" else {}
        return load(name).scan(folder, **options) if name else detect(folder)

    (tmp_path / ".DS_Store").touch()
    with pytest.raises(DataError, match="the folder is empty"):
        run(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        run(tmp_path / "nowhere")


def test_an_unknown_importer_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'nnunet'"):
        load("nnUnet")


@pytest.mark.parametrize(
    ("make", "name"), [(make_nnunet, "nnunet"), (make_la2018, "la2018"), (make_acdc, "acdc")]
)
@pytest.mark.parametrize("place", ["data", "project"])
def test_an_imported_manifest_is_written_anywhere_and_read_back_equal(
    tmp_path: Path, make, name: str, place: str
):
    manifest = load(name).scan(make(tmp_path / "data"))
    assert read_manifest(write_manifest(manifest, tmp_path / place)) == manifest


def test_a_folder_named_relative_to_the_working_folder_gives_absolute_paths(tmp_path: Path, monkeypatch):
    make_la2018(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert la2018.scan("data") == la2018.scan(tmp_path / "data")


# nnU-Net


def test_nnunet_cases_values_and_modality_are_read(tmp_path: Path):
    manifest = nnunet.scan(make_nnunet(tmp_path / "Dataset001_Toy"))
    data_set = manifest.data_sets["Dataset001_Toy"]
    assert manifest.label_space.names == ("background", "liver", "spleen")
    assert (data_set.modality, data_set.values) == ("ct", {0: "background", 1: "liver", 2: "spleen"})
    assert splits(manifest) == dict.fromkeys(["c0", "c1", "c2", "c3"], "train")
    case = manifest.cases[0]
    assert case.annotated == {"liver", "spleen"}
    assert read_case_labels(case, manifest).data.ravel()[:3].tolist() == [1, 2, 0]


def test_nnunet_images_without_a_label_are_unlabelled_and_labels_without_an_image_are_reported(
    tmp_path: Path, warnings_of
):
    make_nnunet(tmp_path)
    (tmp_path / "labelsTr" / "c1.nii.gz").rename(tmp_path / "labelsTr" / "lost.nii.gz")
    manifest = nnunet.scan(tmp_path)
    assert (by_id(manifest)["c1"].labels, by_id(manifest)["c1"].annotated) == (None, frozenset())
    assert "lost" in warnings_of()


def test_nnunet_test_images_are_test_cases_with_labels_if_there_are_any(tmp_path: Path):
    make_nnunet(tmp_path)
    write_scan(tmp_path / "imagesTs" / "t1_0000.nii.gz")
    write_scan(tmp_path / "imagesTs" / "t2_0000.nii.gz")
    write_map(tmp_path / "labelsTs" / "t2.nii.gz", 1)
    tests = nnunet.scan(tmp_path).split("test")
    assert [(case.id, bool(case.annotated)) for case in tests] == [("t1", False), ("t2", True)]


def test_nnunet_channels_are_the_images_of_a_case_in_order(tmp_path: Path):
    manifest = nnunet.scan(make_nnunet(tmp_path, channels=2))
    assert [file.name for file in manifest.cases[0].images] == ["c0_0000.nii.gz", "c0_0001.nii.gz"]
    assert len(read_case_image(manifest.cases[0], manifest).data) == 2
    (tmp_path / "imagesTr" / "c2_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'c2'"):
        nnunet.scan(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CT", ("ct", False)),
        ("MRI", ("mr", False)),
        ("T1", ("mr", False)),
        ("PET", ("other", False)),
        ("noNorm", ("other", True)),
    ],
)
def test_nnunet_modality_follows_the_name_of_the_channel(
    tmp_path: Path, name: str, expected: tuple[str, bool]
):
    manifest = nnunet.scan(make_nnunet(tmp_path, channel_names={"0": name}), data_set="x")
    data_set = manifest.data_sets["x"]
    assert (data_set.modality, data_set.normalised) == expected


def test_nnunet_ignore_label_and_regions(tmp_path: Path, warnings_of):
    labels = {"background": 0, "whole": [1, 2], "liver": 1, "ignore": 2}
    manifest = nnunet.scan(make_nnunet(tmp_path, labels=labels))
    assert manifest.label_space.names == ("background", "liver")
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, IGNORE, 0]
    assert "whole" in warnings_of()


def test_nnunet_decathlon_files_are_read_too(tmp_path: Path):
    make_nnunet(
        tmp_path,
        2,
        channel_names=None,
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "spleen"},
    )
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    del dataset["channel_names"], dataset["file_ending"]
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    for file in list((tmp_path / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace("_0000", "")))
    (tmp_path / "imagesTr" / "._c0.nii.gz").write_bytes(b"junk")
    manifest = nnunet.scan(tmp_path)
    assert [case.id for case in manifest.cases] == ["c0", "c1"]
    assert manifest.label_space.names == ("background", "liver", "spleen")


def test_nnunet_fold_sets_the_validation_cases_and_leaves_unlabelled_ones_in_training(tmp_path: Path):
    make_nnunet(tmp_path)
    (tmp_path / "labelsTr" / "c3.nii.gz").unlink()
    folds = [{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c2"], "val": ["c1"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert splits(nnunet.scan(tmp_path, fold=0)) == {
        "c0": "train",
        "c1": "train",
        "c2": "validation",
        "c3": "train",
    }
    assert splits(nnunet.scan(tmp_path, fold=1)) == {
        "c0": "",
        "c1": "validation",
        "c2": "train",
        "c3": "train",
    }
    with pytest.raises(ConfigError, match="no fold 2"):
        nnunet.scan(tmp_path, fold=2)


def test_nnunet_states_what_a_data_set_annotates_and_who_is_a_patient(tmp_path: Path):
    manifest = nnunet.scan(make_nnunet(tmp_path), annotated=["liver"], group=r"c[01]|.")
    assert all(case.annotated == {"liver"} for case in manifest.cases)
    assert [case.group for case in manifest.cases] == ["c0", "c1", "c", "c"]
    with pytest.raises(ConfigError, match="did you mean 'liver'"):
        nnunet.scan(tmp_path, annotated=["livre"])
    with pytest.raises(ConfigError, match="does not match"):
        nnunet.scan(tmp_path, group="patient")
    with pytest.raises(ConfigError, match="no regular expression"):
        nnunet.scan(tmp_path, group="(")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": {}}, "names no channels"),
        ({"labels": {}}, "names no labels"),
        ({"labels": {"background": 0}}, "no class beside the background"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "no class beside the background"),
        ({"labels": {"background": 0, "liver": 1.5}}, "not an integer"),
        ({"file_ending": ".png"}, "'.png' cannot be read"),
    ],
)
def test_nnunet_a_wrong_dataset_json_is_refused(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        nnunet.scan(make_nnunet(tmp_path, **changes))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_nnunet_a_garbled_dataset_json_is_refused(tmp_path: Path, text: str):
    (make_nnunet(tmp_path) / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        nnunet.scan(tmp_path)


# LA2018


def test_la2018_keeps_the_order_of_the_lists_so_that_the_first_n_are_the_papers(tmp_path: Path):
    manifest = la2018.scan(make_la2018(tmp_path))
    assert splits(manifest) == {"c": "train", "a": "train", "b": "train", "d": "test"}
    assert list(splits(manifest)) == ["c", "a", "b", "d"]
    first = hide(manifest, "keep_labelled", n=2)
    assert [case.id for case in first.split("train") if case.annotated] == ["c", "a"]


def test_la2018_image_labels_and_spacing(tmp_path: Path):
    manifest = la2018.scan(make_la2018(tmp_path))
    image = read_case_image(manifest.cases[0], manifest)
    assert image.data.shape == (1, 4, 5, 6)
    assert image.spacing_mm == (0.625, 0.625, 0.625)
    assert read_case_labels(manifest.cases[0], manifest).data[:, 0, 0].tolist() == [1, 0, 0, 0]
    assert manifest.data_sets["la2018"].normalised


def test_la2018_lists_may_lie_beside_or_one_level_above_the_scans(tmp_path: Path):
    make_la2018(tmp_path)
    inner = tmp_path / "2018LA_Seg_Training Set"
    expected = la2018.scan(tmp_path)
    assert la2018.scan(inner) == expected
    for name in ("train.list", "test.list"):
        (tmp_path / name).rename(inner / name)
    assert la2018.scan(inner) == la2018.scan(tmp_path) == expected


def test_la2018_missing_and_unlisted_scans_are_reported(tmp_path: Path, warnings_of):
    make_la2018(tmp_path)
    (tmp_path / "train.list").write_text("c,1\na\nmissing\n")
    manifest = la2018.scan(tmp_path)
    assert splits(manifest) == {"c": "train", "a": "train", "d": "test", "b": ""}
    assert "missing" in warnings_of()
    assert "(b)" in warnings_of()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test.list", None, "test.list is missing"),
        ("train.list", "c\nd\n", "in two lists"),
        ("train.list", "c\nc\n", "stands twice"),
    ],
)
def test_la2018_wrong_lists_are_refused(tmp_path: Path, name: str, text: str | None, message: str):
    file = make_la2018(tmp_path) / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        la2018.scan(tmp_path)


def test_la2018_lists_of_other_scans_are_refused(tmp_path: Path):
    for name in ("train.list", "test.list"):
        (make_la2018(tmp_path / "x") / name).write_text("other\n" if name == "train.list" else "else\n")
    for name in ("train.list", "test.list"):
        (tmp_path / "x" / name).write_text(name)
    with pytest.raises(DataError, match="none of the listed cases"):
        la2018.scan(tmp_path / "x")


# ACDC


def test_acdc_patients_are_groups_and_the_validation_list_is_the_test_split(tmp_path: Path, warnings_of):
    manifest = acdc.scan(make_acdc(tmp_path))
    assert [(case.id, case.group, case.split) for case in manifest.cases] == [
        ("patient003_frame01", "patient003", "train"),
        ("patient003_frame12", "patient003", "train"),
        ("patient001_frame01", "patient001", "train"),
        ("patient002_frame01", "patient002", "test"),
        ("patient002_frame12", "patient002", "test"),
        ("patient001_frame12", "patient001", ""),
    ]
    assert "distances are in voxels" in warnings_of()


def test_acdc_validates_on_the_validation_list_where_a_test_list_exists(tmp_path: Path):
    (make_acdc(tmp_path) / "test.list").write_text("patient001_frame12\n")
    assert splits(acdc.scan(tmp_path))["patient002_frame01"] == "validation"
    assert splits(acdc.scan(tmp_path))["patient001_frame12"] == "test"


def test_convention_acdc_arrays_are_stored_slices_first(tmp_path: Path):
    manifest = acdc.scan(make_acdc(tmp_path))
    labels = read_case_labels(manifest.cases[0], manifest)
    assert labels.shape == (5, 4, 2)
    assert labels.data[:4, 0, 1].tolist() == [0, 1, 2, 3]
    assert labels.spacing_mm == (1, 1, 1)


def test_convention_acdc_scribbles_say_nothing_where_nobody_drew(tmp_path: Path):
    manifest = acdc.scan(make_acdc(tmp_path), labels="scribble")
    scribble, dense = (read_case_labels(manifest.split(name)[0], manifest).data for name in ("train", "test"))
    assert scribble[:4, 0, 1].tolist() == [0, 1, 2, 3]
    assert (scribble == IGNORE).sum() == scribble.size - 4
    assert not (dense == IGNORE).any()


def test_acdc_refuses_an_unknown_kind_of_labels(tmp_path: Path):
    with pytest.raises(ConfigError, match="dense or scribble"):
        acdc.scan(make_acdc(tmp_path), labels="points")


@pytest.mark.parametrize("scan", [acdc.scan, la2018.scan, nnunet.scan])
def test_a_folder_with_other_things_is_refused(tmp_path: Path, scan):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError):
        scan(tmp_path)


# plain folders


def make_folders(folder: Path, *names: str, images: str = "images", labels: str = "labels") -> Path:
    for name in names:
        write_scan(folder / images / f"{name}.nii.gz", seed=len(name))
        write_map(folder / labels / f"{name.removesuffix('_0000')}.nii.gz", 1, 3)
    return folder


def scan_folders(folder: Path, **options: object) -> Manifest:
    return folders.scan(folder, **{"classes": CLASSES, "modality": "ct", "data_set": "site", **options})


def test_folders_pair_images_and_labels_by_name_without_the_channel(tmp_path: Path):
    manifest = scan_folders(make_folders(tmp_path, "amos_0117", "FLARE22_Tr_0001_0000"))
    assert {case.id: case.labels.name for case in manifest.cases} == {
        "FLARE22_Tr_0001": "FLARE22_Tr_0001.nii.gz",
        "amos_0117": "amos_0117.nii.gz",
    }
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, 2, 0]
    assert set(splits(manifest).values()) == {"train"}


def test_folders_numbered_cases_are_not_channels_where_labels_have_their_names(tmp_path: Path):
    make_folders(tmp_path, "case_0001", "case_0002")
    write_scan(tmp_path / "images" / "case_0000.nii.gz")
    write_map(tmp_path / "labels" / "case_0000.nii.gz", 1)
    assert len(scan_folders(tmp_path).cases) == 3


def test_folders_channels_of_a_case_stay_together(tmp_path: Path):
    make_folders(tmp_path, "a_0000")
    write_scan(tmp_path / "images" / "a_0001.nii.gz")
    assert [file.name for file in scan_folders(tmp_path).cases[0].images] == [
        "a_0000.nii.gz",
        "a_0001.nii.gz",
    ]


def test_folders_with_many_numbered_scans_are_not_guessed_at(tmp_path: Path):
    for number in range(12):
        write_scan(tmp_path / f"case_{number:04d}.nii.gz")
    with pytest.raises(DataError, match="channels of one scan"):
        scan_folders(tmp_path)


def test_folders_skip_junk_and_report_what_has_no_partner(tmp_path: Path, warnings_of):
    make_folders(tmp_path, "a", "b")
    (tmp_path / "images" / "._a.nii.gz").write_bytes(b"junk")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "labels" / "a.nii.gz").rename(tmp_path / "labels" / "orphan.nii.gz")
    manifest = scan_folders(tmp_path)
    assert {case.id: bool(case.annotated) for case in manifest.cases} == {"a": False, "b": True}
    assert "without an image are left out: 1 (orphan)" in warnings_of()
    assert "unlabelled cases: 1 (a)" in warnings_of()


def test_folders_of_folders_with_repeated_names_are_paired_by_their_path(tmp_path: Path):
    make_folders(tmp_path, "p1/ct", "p2/ct")
    manifest = scan_folders(tmp_path)
    assert [case.id for case in manifest.cases] == ["p1_ct", "p2_ct"]
    assert [case.labels.parent.name for case in manifest.cases] == ["p1", "p2"]


def test_folders_may_have_other_names_or_lie_elsewhere(tmp_path: Path):
    make_folders(tmp_path, "a", images="data/mine", labels="data/theirs")
    manifest = scan_folders(tmp_path / "data", images="mine", labels=tmp_path / "data" / "theirs")
    assert manifest.cases[0].annotated == {"liver", "spleen"}


def test_folders_of_images_alone_are_unlabelled_cases(tmp_path: Path):
    write_scan(tmp_path / "sub" / "a.nii.gz")
    write_scan(tmp_path / "b.nii")
    assert [(case.id, case.annotated) for case in scan_folders(tmp_path).cases] == [
        ("a", frozenset()),
        ("b", frozenset()),
    ]


def test_folders_with_images_on_top_and_labels_in_a_folder_of_their_own(tmp_path: Path):
    write_scan(tmp_path / "a.nii.gz")
    write_map(tmp_path / "masks" / "a.nii.gz", 1)
    cases = scan_folders(tmp_path).cases
    assert [(case.id, bool(case.labels)) for case in cases] == [("a", True)]


def test_folders_take_ignore_and_annotated_from_the_user(tmp_path: Path):
    make_folders(tmp_path, "a")
    manifest = scan_folders(tmp_path, classes={"liver": 1, "spleen": 2, "ignore": 3}, annotated=["liver"])
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, IGNORE, 0]
    assert manifest.cases[0].annotated == {"liver"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "classes are missing"),
        ({"modality": None}, "state the modality"),
        ({"classes": {"liver": 1, "spleen": 1}}, "stands for two classes"),
        ({"classes": {"liver": 0}}, "stands for the background"),
        ({"annotated": ["lver"]}, "did you mean 'liver'"),
    ],
)
def test_folders_without_the_necessary_words_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        scan_folders(make_folders(tmp_path, "a"), **options)


def test_folders_whose_names_never_match_are_refused_with_an_example(tmp_path: Path):
    make_folders(tmp_path, "img1")
    (tmp_path / "labels" / "img1.nii.gz").rename(tmp_path / "labels" / "label1.nii.gz")
    with pytest.raises(DataError, match=r"label 'label1', image 'img1'"):
        scan_folders(tmp_path)


def test_folders_with_labels_among_the_images_are_refused(tmp_path: Path):
    write_scan(tmp_path / "abdomen_ct.nii.gz")
    write_map(tmp_path / "abdomen_seg.nii.gz", 1)
    with pytest.raises(DataError, match="a label file seems to lie among the images"):
        scan_folders(tmp_path)


# the real data sets


@pytest.mark.real_data
def test_the_published_la2018_and_acdc_are_imported_as_published(real_data: Path):
    atrium, heart = la2018.scan(real_data / "la2018"), acdc.scan(real_data / "acdc", labels="scribble")
    assert (len(atrium.split("train")), len(atrium.split("test"))) == (80, 20)
    first = [case.id for case in hide(atrium, "keep_labelled", n=4).split("train") if case.annotated]
    assert first == [
        "06SR5RBREL16DQ6M8LWS",
        "0RZDK210BSMWAA6467LU",
        "1D7CUD1955YZPGK8XHJX",
        "1GU15S0GJ6PFNARO469W",
    ]
    assert len({case.group for case in heart.split("train")}) == 70
    assert len({case.group for case in heart.split("test")}) == 10
    scribble = read_case_labels(heart.split("train")[0], heart).data
    assert 0.9 < (scribble == IGNORE).mean() < 1


def test_nnunet_values_that_only_regions_name_are_background(tmp_path: Path, warnings_of):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    make_nnunet(tmp_path, 2, labels=labels)
    write_map(tmp_path / "labelsTr" / "c0.nii.gz", 1, 2, 3, 4)
    manifest = nnunet.scan(tmp_path)
    assert manifest.label_space.names == ("background", "enhancing")
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:5].tolist() == [0, 0, 1, IGNORE, 0]
    assert "whole, core; what only they name is background: 1, 2" in warnings_of()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": [2, 1]}, "regions are passed over"),
        ({"background": 0, "whole": [1, "2"], "core": 2}, "not an integer"),
    ],
)
def test_nnunet_labels_that_make_no_class_are_refused(tmp_path: Path, labels: object, message: str):
    with pytest.raises(DataError, match=message):
        nnunet.scan(make_nnunet(tmp_path, labels=labels))


@pytest.mark.parametrize(
    "folds", [{}, [1], [{"train": ["c0"]}], [{"train": 1, "val": []}], [{"train": [1], "val": []}]]
)
def test_nnunet_garbled_folds_are_refused(tmp_path: Path, folds: object):
    make_nnunet(tmp_path)
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(DataError, match="not a list of folds"):
        nnunet.scan(tmp_path, fold=0)


def test_links_that_lead_back_are_not_followed_and_others_are(tmp_path: Path):
    make_folders(tmp_path / "far", "b")
    make_folders(tmp_path / "here", "a")
    (tmp_path / "here" / "images" / "up").symlink_to("..")
    (tmp_path / "here" / "images" / "more").symlink_to(tmp_path / "far" / "images")
    assert [case.id for case in scan_folders(tmp_path / "here").cases] == ["a", "b"]
