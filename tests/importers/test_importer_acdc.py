"""ACDC as the challenge gives it out, and the lists of SSL4MIS; the h5 form is in test_importers.py, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_case_image, read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import acdc, detect
from labelwise.types import IGNORE
from tiny_cohort import write_map, write_scan

INFO = "ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
AFFINE = np.diag((1.5, 1.5, 10.0, 1.0))


def make_patient(folder: Path, number: int, ed: int = 1, es: int = 12, *, labels: bool = True) -> Path:
    """The files of one patient; the heartbeat itself stays empty, because nobody reads it."""
    name = f"patient{number:03d}"
    home = folder / ("training" if number <= 100 else "testing") / name
    touch(home, f"{name}_4d.nii.gz", "MANDATORY_CITATION.md")
    (home / "Info.cfg").write_text(INFO.format(ed=ed, es=es))
    for frame in (ed, es):
        write_scan(home / f"{name}_frame{frame:02d}.nii.gz", seed=frame, affine=AFFINE)
        if labels:
            write_map(home / f"{name}_frame{frame:02d}_gt.nii.gz", 0, 1, 2, 3, affine=AFFINE)
    return folder


def make_all(folder: Path) -> Path:
    """The 150 patients, without content."""
    for number in range(1, 151):
        name = f"patient{number:03d}"
        home = folder / "database" / ("training" if number <= 100 else "testing") / name
        frames = (4, 11) if number == 90 else (1, 12)
        touch(home, *(f"{name}_frame{frame:02d}{end}.nii.gz" for frame in frames for end in ("", "_gt")))
        (home / "Info.cfg").write_text(INFO.format(ed=frames[0], es=frames[1]))
    return folder


def test_patients_are_groups_and_the_parts_of_the_challenge_are_the_splits(tmp_path: Path):
    make_patient(tmp_path, 101)
    manifest = acdc.scan(make_patient(tmp_path, 1))
    add_junk(tmp_path, "training/patient001/patient001_frame01.nii.gz")
    assert detect(tmp_path) == "acdc"
    assert [(case.id, case.group, case.split) for case in manifest.cases] == [
        ("patient001_frame01", "patient001", "train"),
        ("patient001_frame12", "patient001", "train"),
        ("patient101_frame01", "patient101", "test"),
        ("patient101_frame12", "patient101", "test"),
    ]
    assert acdc.scan(tmp_path) == manifest
    assert reads_back(manifest, tmp_path / "project")


def test_raw_values_spacing_and_modality(tmp_path: Path):
    manifest = acdc.scan(make_patient(tmp_path, 1))
    case = manifest.cases[0]
    labels = read_case_labels(case, manifest).data.ravel()[:4]
    assert [manifest.label_space.names[value] for value in labels] == [
        "background", "right ventricle", "myocardium", "left ventricle",
    ]  # fmt: skip
    assert read_case_image(case, manifest).spacing_mm == (1.5, 1.5, 10.0)
    assert manifest.data_sets["acdc"].modality == "mr"


def test_all_150_patients_find_their_place(tmp_path: Path):
    manifest = acdc.scan(make_all(tmp_path))
    assert sizes(manifest) == (200, 0, 100, 0)
    assert {"patient090_frame04", "patient090_frame11"} < set(ids(manifest.cases))


def test_the_published_split_reproduces_70_10_20_patients_and_the_labelled_ones(tmp_path: Path):
    manifest = acdc.scan(make_all(tmp_path), split="ssl4mis")
    assert sizes(manifest) == (140, 20, 40, 100)

    def labelled(n: int) -> list[int]:
        kept = [case for case in hide(manifest, "keep_labelled", n=n).split("train") if case.annotated]
        assert len(kept) == 2 * n
        return [int(case.group[7:]) for case in kept[::2]]

    assert labelled(3) == [99, 38, 50]
    assert labelled(7) == [99, 38, 50, 100, 58, 21, 49]
    assert sorted({int(case.group[7:]) for case in manifest.split("validation")}) == [
        2, 19, 28, 30, 39, 45, 78, 82, 85, 87,
    ]  # fmt: skip


def test_the_published_lists_name_each_of_the_100_patients_once():
    numbers = [number for part in acdc.SSL4MIS.values() for number in part]
    assert sorted(numbers) == list(range(1, 101))
    assert [len(part) for part in acdc.SSL4MIS.values()] == [70, 10, 20]


def test_the_phase_of_a_frame_is_the_one_that_its_info_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_patient(tmp_path, 1)
    make_patient(tmp_path, 90, ed=11, es=4)
    make_patient(tmp_path, 2)
    (tmp_path / "training/patient002/Info.cfg").unlink()
    (tmp_path / "training/patient001/patient001_frame12.nii.gz").unlink()
    assert ids(acdc.scan(tmp_path, phase="ed").cases) == ["patient001_frame01", "patient090_frame11"]
    assert ids(acdc.scan(tmp_path, phase="es").cases) == ["patient090_frame04"]
    assert "frames whose phase no Info.cfg names are left out: 2 (patient002_frame01" in caplog.text
    assert len(acdc.scan(tmp_path).cases) == 5
    assert "patients without the frame of a phase: 1 (patient001 es)" in caplog.text
    assert "labels without a frame are left out: 1 (patient001_frame12)" in caplog.text


def test_frames_without_labels_are_reported_and_unpacked_folders_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_patient(tmp_path, 101, labels=False)
    touch(tmp_path, "training/patient001/patient001_frame01.nii/patient001_frame01.nii")
    manifest = acdc.scan(tmp_path)
    assert not any(case.annotated for case in manifest.cases)
    assert "patient001_frame01" in by_id(manifest)
    assert "frames without labels: 3" in caplog.text


def test_a_garbled_info_is_refused_without_what_it_says_about_the_patient(tmp_path: Path):
    make_patient(tmp_path, 1)
    (tmp_path / "training/patient001/Info.cfg").write_text("ED: first\nES: 12\nWeight: 95.0\n")
    assert acdc.matches(tmp_path)
    with pytest.raises(DataError, match="which frame is ED") as caught:
        acdc.scan(tmp_path)
    assert "95" not in str(caught.value)
    assert "Info.cfg" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "scribble"}, "no scribbles"),
        ({"split": "lists"}, "is no choice"),
        ({"phase": "systole"}, "is no choice"),
    ],
)
def test_options_that_the_raw_form_does_not_have_are_refused(
    tmp_path: Path, options: dict[str, str], message: str
):
    with pytest.raises(ConfigError, match=message):
        acdc.scan(make_patient(tmp_path, 1), **options)


def test_h5_files_can_be_split_by_the_published_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for number in (2, 3, 38, 99):
        touch(tmp_path, *(f"patient{number:03d}_frame{frame:02d}.h5" for frame in (1, 12)))
    manifest = acdc.scan(tmp_path, split="ssl4mis")
    assert ids(manifest.cases)[::2] == [f"patient{n:03d}_frame01" for n in (99, 38, 3, 2)]
    assert [case.split for case in manifest.cases[-2:]] == ["test", "test"]  # no test patient is there
    assert "cases of the published test list are missing: 20" in caplog.text
    touch(tmp_path, "patient001_frame01.h5")
    assert by_id(acdc.scan(tmp_path, split="ssl4mis"))["patient002_frame01"].split == "validation"
    with pytest.raises(ConfigError, match="is no choice"):
        acdc.scan(tmp_path, split="challenge")
    with pytest.raises(ConfigError, match="which phase"):
        acdc.scan(tmp_path, split="ssl4mis", phase="ed")


def test_two_forms_in_one_folder_and_other_layouts_are_refused(tmp_path: Path):
    make_patient(tmp_path, 1)
    touch(tmp_path, "h5/patient001_frame01.h5")
    with pytest.raises(DataError, match="two forms of ACDC"):
        acdc.scan(tmp_path)
    touch(tmp_path, "x/imagesTr/patient001_frame01_0000.nii.gz", "x/labelsTr/patient001_frame01.nii.gz")
    assert not acdc.matches(tmp_path / "x")


@pytest.mark.real_data
def test_the_published_h5_files_are_imported_as_published(real_data: Path):
    manifest = acdc.scan(real_data / "acdc")
    assert manifest.data_sets["acdc"].values == {
        0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle",
    }  # fmt: skip
    assert sizes(manifest) == (140, 0, 20, 0)
    groups = {name: {int(case.group[7:]) for case in manifest.split(name)} for name in ("train", "test")}
    assert groups == {"train": set(acdc.SSL4MIS["train"]), "test": set(acdc.SSL4MIS["validation"])}
    assert {"patient090_frame04", "patient090_frame11"} < set(ids(manifest.cases))
    ordered = acdc.scan(real_data / "acdc", split="ssl4mis")
    assert {case.id: case.split for case in ordered.cases} == {case.id: case.split for case in manifest.cases}
    kept = hide(ordered, "keep_labelled", n=7).split("train")
    labelled = [case for case in kept if case.annotated]
    assert [case.group for case in labelled[::2]] == [
        f"patient{n:03d}" for n in (99, 38, 50, 100, 58, 21, 49)
    ]
    # Published: 68 and 136 slices of the first 3 and 7 patients.
    slices = [read_case_labels(case, manifest).shape[2] for case in labelled]
    assert (sum(slices[:6]), sum(slices)) == (68, 136)


@pytest.mark.real_data
def test_every_published_label_and_scribble_has_a_meaning(real_data: Path):
    dense, scribble = (acdc.scan(real_data / "acdc", labels=kind) for kind in ("dense", "scribble"))
    for case in dense.cases[::8]:
        assert set(np.unique(read_case_labels(case, dense).data)) <= {0, 1, 2, 3}
    train = scribble.split("train")[0]
    values = read_case_labels(train, scribble).data
    assert set(np.unique(values)) == {0, 1, 2, 3, IGNORE}
