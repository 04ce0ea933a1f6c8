"""What people send back replaces exactly what they changed; what cannot be understood is refused as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clinic import AFFINE, BOXES, SHAPE, box, history_of, label_map, write_scan, write_segments

from labelwise import run
from labelwise.cohort.manifest import DataSet, Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import write_labels
from labelwise.run.learnable import learnable
from labelwise.types import IGNORE, Case, LabelSpace, Proposal, Volume

SPACE = LabelSpace(("background", "liver", "spleen", "aorta"))
MODEL = "9f8e0c1d2b3a4f56"
SEGMENTS = [("liver", 1, 0), ("spleen", 2, 0), ("aorta", 3, 0)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Case a: a person drew the liver (value 5), a model proposes spleen and aorta. Case b: nothing is known."""
    folder = tmp_path / "data"
    images = {name: write_scan(folder / f"images/{name}.nii.gz", seed) for seed, name in enumerate("ab")}
    write_labels(folder / "labels/a.nii.gz", Volume(label_map({"liver": 5}), AFFINE))
    proposed = folder / f"proposals/{MODEL}/a.nii.gz"
    model_says = label_map({"spleen": 2, "aorta": 1})
    model_says[box("liver") & (np.arange(SHAPE[2]) < 3)] = 1  # of the liver it believes a part to be aorta
    write_labels(proposed, Volume(model_says, AFFINE), names=("background", "aorta", "spleen", "gallbladder"))
    cases = (
        Case(
            "a", (images["a"],), folder / "labels/a.nii.gz", frozenset({"liver"}), data_set="north", split="train",
            proposals=(Proposal(proposed, MODEL, frozenset({"spleen", "aorta"})),),
        ),
        Case("b", (images["b"],), data_set="north", split="train"),
    )  # fmt: skip
    data_sets = {"north": DataSet("north", {0: "background", 5: "liver", 255: "ignore"}, "ct")}
    write_manifest(Manifest(SPACE, data_sets, cases), folder)
    return folder


def shown_map() -> np.ndarray:
    return label_map({"liver": 1, "spleen": 2, "aorta": 3})


def returned(folder: Path, labels: np.ndarray, segments=SEGMENTS, case: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_segments(folder / f"{case}.seg.nrrd", [labels], segments)


def case_of(data: Path, name: str = "a") -> Case:
    return next(case for case in read_manifest(data).cases if case.id == name)


def labels_of(data: Path, name: str = "a") -> np.ndarray:
    return read_case_labels(case_of(data, name), read_manifest(data)).data


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_nobody_changed_keeps_its_state_and_writes_nothing(data, tmp_path):
    before = contents(data)
    result = run.correct(data, [returned(tmp_path / "back", shown_map())])
    assert result.unchanged == ("a",)
    assert not result.states
    assert contents(data) == before


def test_a_changed_class_is_taken_over_and_the_others_stay_as_they_were(data, tmp_path):
    drawn = shown_map()
    drawn[BOXES["spleen"]] = 0
    drawn[8:11, 2:6, 2:6] = 2  # another spleen
    old = contents(data)
    result = run.correct(data, [returned(tmp_path / "back", drawn)])
    moved = int((box("spleen") != (drawn == 2)).sum())
    assert result.states == {"a": {"spleen": "corrected"}}
    assert result.changed == {"a": {"spleen": moved}}
    case = case_of(data)
    assert case.states == {"liver": "annotated", "spleen": "corrected", "aorta": "predicted"}
    expected = np.where(drawn == 3, 0, drawn)  # the aorta is still a proposal: nobody learns from it
    assert np.array_equal(labels_of(data), expected)
    assert {
        name: contents(data)[name] for name in old if name != "manifest.csv" and name != "dataset.toml"
    } == {name: content for name, content in old.items() if name not in ("manifest.csv", "dataset.toml")}
    (event,) = history_of(data)
    assert event["structures"] == {
        "spleen": {
            "state": "corrected",
            "before": "predicted",
            "changed": moved,
            "voxels": int((drawn == 2).sum()),
        }
    }
    assert (event["before"], event["labels"]) == ("labels/a.nii.gz", "corrections/0001/a.nii.gz")


def test_a_second_correction_is_a_second_file_and_the_first_is_kept(data, tmp_path):
    first, second = shown_map(), shown_map()
    first[7, 2, 2] = 0
    second[7, 2, 3] = 0
    run.correct(data, [returned(tmp_path / "first", first)])
    kept = (data / "corrections/0001/a.nii.gz").read_bytes()
    run.correct(data, [returned(tmp_path / "second", second)])
    assert (data / "corrections/0001/a.nii.gz").read_bytes() == kept
    assert np.array_equal(labels_of(data) == 2, second == 2)
    assert [event["labels"] for event in history_of(data)] == [
        "corrections/0001/a.nii.gz", "corrections/0002/a.nii.gz",
    ]  # fmt: skip
    assert read_manifest(data).cases[0].data_set == "north_reviewed"


def test_a_class_that_a_person_emptied_is_known_to_be_absent(data, tmp_path):
    drawn = shown_map()
    drawn[drawn == 2] = 0
    run.correct(data, [returned(tmp_path / "back", drawn)])
    assert case_of(data).states["spleen"] == "corrected"
    assert not (labels_of(data) == 2).any()


def test_a_listed_class_of_which_nobody_knew_and_nobody_drew_stays_unknown(data, tmp_path):
    drawn = label_map({"liver": 1})
    run.correct(data, [returned(tmp_path / "back", drawn, SEGMENTS[:2], "b")])
    assert case_of(data, "b").states == {"liver": "corrected"}


def test_verified_classes_are_believed_though_nothing_changed(data, tmp_path):
    run.correct(data, [returned(tmp_path / "back", shown_map())], verified=["spleen"])
    assert case_of(data).states == {"liver": "annotated", "spleen": "verified", "aorta": "predicted"}
    assert np.array_equal(labels_of(data), np.where(shown_map() == 3, 0, shown_map()))


def test_a_file_cut_to_what_is_drawn_and_numbered_anew_is_understood(data, tmp_path):
    """3D Slicer saves the extent of the segments only, and counts the labels from one."""
    tmp_path.joinpath("back").mkdir()
    spleen = np.ones((3, 3, 3), np.uint8)
    write_segments(tmp_path / "back/a.seg.nrrd", [spleen], [("Spleen", 1, 0)], start=(8, 2, 3))
    run.correct(data, [tmp_path / "back"])
    expected = label_map({"liver": 1})
    expected[8:11, 2:5, 3:6] = 2
    assert np.array_equal(labels_of(data), expected)


def test_a_nifti_without_names_is_understood_by_the_record_beside_it(data, tmp_path):
    """ITK-SNAP writes the numbers and drops the names."""
    run.review(data, tmp_path / "review")
    file = tmp_path / "review/labels/a.nii.gz"
    drawn = shown_map()
    drawn[BOXES["aorta"]] = 0
    write_labels(file, Volume(drawn, AFFINE))
    assert run.correct(data, [tmp_path / "review"]).states == {"a": {"aorta": "corrected"}}
    alone = tmp_path / "alone" / "a.nii.gz"
    alone.parent.mkdir()
    file.rename(alone)
    with pytest.raises(DataError, match="no file says what the label values mean"):
        run.correct(data, [alone])
    assert run.correct(data, [alone], classes={"aorta": 3, "spleen": 2, "liver": 1}).unchanged == ("a",)


def test_where_nothing_was_known_stays_so_until_every_class_is_judged_anew(data, tmp_path):
    scribbles = np.full(SHAPE, 255, np.uint8)
    scribbles[:2] = label_map({"liver": 5})[:2]
    write_labels(data / "labels/a.nii.gz", Volume(scribbles, AFFINE))
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[BOXES["spleen"]] = 2
    run.correct(data, [returned(tmp_path / "back", drawn, SEGMENTS[1:2])])
    labels = labels_of(data)
    assert np.array_equal(labels == 2, box("spleen"))
    assert (labels == IGNORE).sum() == (scribbles == 255).sum() - box("spleen").sum()
    run.correct(data, [returned(tmp_path / "again", shown_map())])
    assert not (labels_of(data) == IGNORE).any()


def test_only_the_named_states_teach(data, tmp_path):
    drawn = shown_map()
    drawn[7, 2, 2] = 0
    run.correct(data, [returned(tmp_path / "back", drawn)])
    manifest = read_manifest(data)

    def taught(*states: str) -> tuple[frozenset[str], np.ndarray]:
        learnt = learnable(manifest, states, tmp_path / "store")
        return learnt.cases[0].annotated, read_case_labels(learnt.cases[0], learnt).data

    structures, labels = taught("annotated", "corrected", "verified")
    assert structures == {"liver", "spleen"}
    assert np.array_equal(labels, np.where(drawn == 3, 0, drawn))
    structures, labels = taught("corrected")
    assert structures == {"spleen"}
    assert np.array_equal(labels, np.where(drawn == 2, 2, 0))
    structures, labels = taught("annotated", "corrected", "predicted")
    assert structures == {"liver", "spleen", "aorta"}
    assert np.array_equal(labels, drawn), "proposals must not cover what people drew"


def test_validation_cases_are_never_scored_on_predictions(data, tmp_path):
    manifest = read_manifest(data)
    cases = [replace(case, split="validation") for case in manifest.cases]
    learnt = learnable(manifest.replace_cases(cases), ("predicted",), tmp_path / "store")
    assert learnt.cases[0].annotated == {"liver"}
    assert not (tmp_path / "store").exists()


def other_grid(folder: Path) -> Path:
    affine = AFFINE.copy()
    affine[0, 3] = 0.7  # mm: a third of a voxel
    write_labels(folder / "a.nii.gz", Volume(shown_map(), affine), names=SPACE.names)
    return folder / "a.nii.gz"


def over_the_liver(folder: Path) -> Path:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[4:9, 2:5, 2:6] = 2
    return returned(folder, drawn, SEGMENTS[1:2])


def overlapping(folder: Path) -> Path:
    spleen = box("spleen").astype(np.uint8)
    return write_segments(folder / "a.seg.nrrd", [spleen, spleen * 2], [("spleen", 1, 0), ("aorta", 2, 1)])


REFUSED = {
    "do not lie on the grid": other_grid,
    "unknown class 'pancreas'": lambda folder: returned(
        folder, shown_map(), [*SEGMENTS[:2], ("pancreas", 3, 0)]
    ),
    "covers what people drew as liver": over_the_liver,
    "structures overlap": overlapping,
    "belongs to no case": lambda folder: returned(folder, shown_map(), case="c"),
    "without a name": lambda folder: write_named(folder, shown_map() * 2),
}


def write_named(folder: Path, labels: np.ndarray) -> Path:
    file = folder / "a.nii.gz"
    write_labels(file, Volume(labels, AFFINE))
    (folder / "a.json").write_text(json.dumps({"classes": {"0": "background", "2": "liver", "4": "spleen"}}))
    return file


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_taken_is_refused_and_nothing_is_written(data, tmp_path, message):
    good = label_map({"liver": 1})
    folder = tmp_path / "back"
    folder.mkdir()
    wrong = REFUSED[message](folder)
    fine = returned(tmp_path / "fine", good, SEGMENTS[:1], "b")
    before = contents(data)
    with pytest.raises(DataError, match=message) as caught:
        run.correct(data, [fine, wrong])
    assert str(wrong) in str(caught.value)
    assert contents(data) == before


def test_two_files_that_change_one_case_are_refused(data, tmp_path):
    first, second = shown_map(), shown_map()
    first[7, 2, 2], second[7, 2, 3] = 0, 0
    files = [returned(tmp_path / "one", first), returned(tmp_path / "two", second)]
    with pytest.raises(DataError, match="two files correct one case"):
        run.correct(data, files)


def test_a_verified_class_has_to_be_known(data, tmp_path):
    with pytest.raises(ConfigError, match="--verified: unknown class 'spleem'; did you mean 'spleen'"):
        run.correct(data, [returned(tmp_path / "back", shown_map())], verified=["spleem"])
