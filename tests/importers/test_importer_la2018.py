"""LA2018 as the challenge gives it out; the h5 form is in test_importers.py, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_case_image, read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, la2018
from labelwise.importers.la2018 import UAMT_TEST


def write_nrrd(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((0.625, 0.625, 0.625))
    SimpleITK.WriteImage(image, str(path))


def make_raw(folder: Path) -> Path:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1:3, 2:4, 2:5] = 255
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 6), dtype=np.uint8)
    for name in ("Training Set/B", "Training Set/A", f"Training Set/{UAMT_TEST[0]}", "Testing Set/C"):
        write_nrrd(folder / name / "lgemri.nrrd", image)
        if "Testing" not in name:
            write_nrrd(folder / name / "laendo.nrrd", labels)
            touch(folder, f"{name}/lawall.nrrd")
    add_junk(folder, "Training Set/A/lgemri.nrrd")
    return folder


def make_all(folder: Path) -> Path:
    """100 and 54 scans, empty; the ids of training scans are made up."""
    names = [f"{letter}{number:019d}" for letter in "0AU" for number in range(40)][:80]
    for name in (*names, *UAMT_TEST):
        touch(folder, f"Training Set/{name}/lgemri.nrrd", f"Training Set/{name}/laendo.nrrd")
    for number in range(54):
        touch(folder, f"Testing Set/T{number:019d}/lgemri.nrrd", f"Testing Set/T{number:019d}/laendo.nrrd")
    return folder


def test_raw_scans_get_the_published_split(tmp_path: Path):
    manifest = la2018.scan(make_raw(tmp_path))
    assert detect(tmp_path) == "la2018"
    assert [(case.id, case.split, bool(case.annotated)) for case in manifest.cases] == [
        ("A", "train", True),
        ("B", "train", True),
        (UAMT_TEST[0], "test", True),
        ("C", "", False),
    ]
    assert reads_back(manifest, tmp_path / "project")


def test_the_value_255_is_the_left_atrium_and_the_wall_is_not_read(tmp_path: Path):
    manifest = la2018.scan(make_raw(tmp_path))
    case = manifest.cases[0]
    labels = read_case_labels(case, manifest)
    assert labels.data.sum() == 2 * 2 * 3
    assert set(np.unique(labels.data)) == {0, 1}
    np.testing.assert_allclose(read_case_image(case, manifest).spacing_mm, 0.625)
    np.testing.assert_array_equal(read_case_image(case, manifest).affine, labels.affine)
    assert manifest.data_sets["la2018"].modality == "mr"
    assert manifest.label_space.names == ("background", "left atrium")


def test_all_154_scans_find_their_place(tmp_path: Path):
    manifest = la2018.scan(make_all(tmp_path))
    assert sizes(manifest) == (80, 0, 20, 54)
    assert ids(manifest.split("train")) == sorted(ids(manifest.split("train")))
    assert tuple(ids(manifest.split("test"))) == UAMT_TEST
    assert sizes(la2018.scan(tmp_path, split="challenge")) == (100, 0, 54, 0)


def test_missing_scans_of_the_published_split_and_labels_without_scans_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_raw(tmp_path)
    (tmp_path / "Training Set/B/lgemri.nrrd").unlink()
    (tmp_path / "Training Set/A/laendo.nrrd").unlink()
    manifest = la2018.scan(tmp_path)
    assert (by_id(manifest)["A"].labels, "B" in by_id(manifest)) == (None, False)
    assert "cases of the published test list are missing: 19" in caplog.text
    assert "label files without an image are left out: 1 (B)" in caplog.text
    assert "cases that the published lists do not name take no part: 1 (C)" in caplog.text


def test_wrong_options_and_mixed_forms_are_refused(tmp_path: Path):
    make_all(tmp_path)
    with pytest.raises(ConfigError, match="is no choice"):
        la2018.scan(tmp_path, split="lists")
    touch(tmp_path, "h5/A/mri_norm2.h5", "other/scan.nrrd")
    with pytest.raises(DataError, match="two forms of LA2018"):
        la2018.scan(tmp_path)
    with pytest.raises(ConfigError, match="is no choice"):
        la2018.scan(tmp_path / "h5", split="uamt")
    with pytest.raises(DataError, match="no scan of LA2018"):
        la2018.scan(tmp_path / "other")
    assert not la2018.matches(tmp_path / "other")


@pytest.mark.real_data
def test_the_published_h5_files_are_imported_as_published(real_data: Path):
    manifest = la2018.scan(real_data / "la2018")
    assert sizes(manifest) == (80, 0, 20, 0)
    assert tuple(ids(manifest.split("test"))) == UAMT_TEST
    train = ids(manifest.split("train"))
    assert train == sorted(train)
    assert manifest.data_sets["la2018"].values == {0: "background", 1: "left atrium"}
    for n in (4, 8, 16):
        kept = hide(manifest, "keep_labelled", n=n).split("train")
        assert [case.id for case in kept if case.annotated] == train[:n]
    for case in manifest.cases[::25]:
        image, labels = read_case_image(case, manifest), read_case_labels(case, manifest)
        assert image.shape == labels.shape
        assert image.shape[2] == 88
        assert image.spacing_mm == (0.625, 0.625, 0.625)
        assert set(np.unique(labels.data)) == {0, 1}
        assert 0.03 < labels.data.mean() < 0.15
