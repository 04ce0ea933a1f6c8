"""The loop with people, twice: predict, look, correct, take back, train on; by files of 3D Slicer and by DICOM."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from clinic import history_of

from conftest import TINY_SITES, tiny_config
from labelwise import run
from labelwise.cohort.manifest import DataSet, Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.scores import read_scores
from labelwise.formats import Layout, read_image, read_labels, segment_names, write_labels
from labelwise.infer.model import load_model
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.types import Case, Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import write_series

CASE = "north_000"  # its site annotates liver and pancreas


@pytest.fixture
def data(tiny_cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that may be changed; its prepared scans go along."""
    return Path(shutil.copytree(tiny_cohort, tmp_path / "data"))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same scans, completely annotated."""
    folder = tmp_path_factory.mktemp("truth")
    config = SyntheticConfig(
        TINY_SITES, cases_per_site=1, unlabelled=0, validation=0, test=0, shape=(24, 24, 16), full=True
    )
    return make_cohort(folder, config)


def true_labels(truth: Manifest, case: str, *structures: str) -> np.ndarray:
    """(X, Y, Z) class indices of some structures."""
    found = next(each for each in truth.cases if each.id == case)
    labels = read_case_labels(found, truth).data
    return np.where(
        np.isin(labels, [truth.label_space.index(structure) for structure in structures]), labels, 0
    )


def in_slicer(file: Path, labels: np.ndarray) -> None:
    """What a person does in 3D Slicer: paint into the segments of a file and save it."""
    names = ("background", *segment_names(file))
    shown = read_labels(file, Layout(segments=names[1:]))
    assert shown.data.shape == labels.shape
    write_labels(file, Volume(labels, shown.affine), names=names)


def states(data: Path, case: str = CASE) -> dict[str, str]:
    return next(each for each in read_manifest(data).cases if each.id == case).states


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_the_loop_is_walked_twice(data, tiny_run, truth, tmp_path):
    structures = read_manifest(data).label_space.structures
    index = read_manifest(data).label_space.index
    first = load_model(tiny_run, "cpu").id

    # once: the model proposes, a person draws the spleen as it is
    assert run.propose(tiny_run, data, device="cpu").failed == {}
    assert states(data) == {
        "liver": "annotated", "pancreas": "annotated", "spleen": "predicted", "kidneys": "predicted",
    }  # fmt: skip
    listed = run.review(data, tmp_path / "review")
    assert set(listed.cases) == {CASE, "south_000", "unlabelled_000"}
    ready = tmp_path / "review/labels" / f"{CASE}.seg.nrrd"
    shown = read_labels(ready, Layout(segments=segment_names(ready))).data
    drawn = np.where(shown == index("spleen"), 0, shown)
    drawn[true_labels(truth, CASE, "spleen") > 0] = index("spleen")
    in_slicer(ready, drawn)
    result = run.correct(data, [tmp_path / "review"])
    assert result.states == {CASE: {"spleen": "corrected"}}
    assert result.changed[CASE]["spleen"] == ((shown == index("spleen")) != (drawn == index("spleen"))).sum()
    assert states(data)["spleen"] == "corrected"
    known = read_case_labels(
        next(case for case in read_manifest(data).cases if case.id == CASE), read_manifest(data)
    )
    assert np.array_equal(known.data, true_labels(truth, CASE, "liver", "pancreas", "spleen"))

    # the scores of the first model on what the person drew
    proposals = data / "proposals" / first
    cases = [case for case in read_manifest(data).cases if case.id == CASE]
    write_manifest(read_manifest(data).replace_cases(cases), tmp_path / "corrected")
    run.evaluate(proposals, tmp_path / "corrected", tmp_path / "scores.csv", split="train", workers=1)
    found = {
        score.class_name: score.value
        for score in read_scores(tmp_path / "scores.csv")
        if score.metric == "dice"
    }
    said = read_labels(proposals / f"{CASE}.nii.gz").data
    assert found["spleen"] == pytest.approx(dice(said == index("spleen"), drawn == index("spleen")))
    assert {structure for structure, value in found.items() if np.isfinite(value)} <= {
        "liver",
        "pancreas",
        "spleen",
    }

    # train on, and once more: what a person has judged is not proposed again
    run.train(tiny_config(data, train__steps=[2], seed=1, warm_start=str(tiny_run)), tmp_path / "second")
    assert (tmp_path / "second/warm_start.json").exists()
    assert json.loads((tmp_path / "second/model/model.json").read_text())["training"]["annotated_cases"] == {
        "liver": 1, "pancreas": 1, "spleen": 2, "kidneys": 1,
    }  # fmt: skip
    second = load_model(tmp_path / "second", "cpu").id
    before = {file: file.read_bytes() for file in data.rglob("*.nii.gz")}
    run.propose(tmp_path / "second", data, device="cpu")
    case = next(each for each in read_manifest(data).cases if each.id == CASE)
    assert [(each.model, each.structures) for each in case.proposals] == [(second, {"kidneys"})]
    run.review(data, tmp_path / "again", top=3)
    ready = tmp_path / "again/labels" / f"{CASE}.seg.nrrd"
    in_slicer(ready, true_labels(truth, CASE, *structures))
    run.correct(data, [ready], verified=["all"])
    assert states(data) == dict.fromkeys(("liver", "spleen", "kidneys", "pancreas"), "verified")
    assert all(file.read_bytes() == content for file, content in before.items()), (
        "label files are never rewritten"
    )
    told = [(event["event"], event["labels"]) for event in history_of(data) if event["case"] == CASE]
    assert told == [
        ("predicted", f"proposals/{first}/{CASE}.nii.gz"),
        ("corrected", f"corrections/0001/{CASE}.nii.gz"),
        ("predicted", f"proposals/{second}/{CASE}.nii.gz"),
        ("corrected", f"corrections/0002/{CASE}.nii.gz"),
    ]


def test_proposing_twice_changes_nothing(data, tiny_run):
    run.propose(tiny_run, data, device="cpu")
    table, history = (data / "manifest.csv").read_bytes(), history_of(data)
    run.propose(tiny_run, data, device="cpu")
    assert ((data / "manifest.csv").read_bytes(), history_of(data)) == (table, history)


def test_other_settings_are_other_proposals(data, tiny_run):
    run.propose(tiny_run, data, device="cpu")
    old = {file: file.read_bytes() for file in (data / "proposals").rglob("*.nii.gz")}
    run.propose(tiny_run, data, device="cpu", settings={"overlap": 0.5})
    assert len(list((data / "proposals").iterdir())) == 2
    assert all(file.read_bytes() == content for file, content in old.items())


def test_the_list_begins_with_the_most_doubtful_case(data, tiny_run, tmp_path):
    run.propose(tiny_run, data, device="cpu")
    run.review(data, tmp_path / "review")
    with (tmp_path / "review/worklist.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row["expected_dice"]) for row in rows]
    assert values == sorted(values)
    for row in rows:
        record = json.loads(next((data / "proposals").rglob(f"{row['case']}.json")).read_text())
        structures = [
            structure for structure, state in states(data, row["case"]).items() if state == "predicted"
        ]
        noted = [record["certainty"][structure]["expected_dice"] for structure in structures]
        assert float(row["expected_dice"]) == pytest.approx(
            min(1 if value is None else value for value in noted), abs=1e-4
        )
    page = (tmp_path / "review/index.html").read_text()
    assert page.index(rows[0]["case"]) < page.index(rows[-1]["case"])
    with pytest.raises(ConfigError, match="may hold corrections"):
        run.review(data, tmp_path / "review")


def test_with_scores_the_list_begins_with_the_worst_case(data, tiny_run, tmp_path):
    scores = read_scores(tiny_run / "scores.csv")
    worst = min(
        (score for score in scores if score.metric == "dice" and np.isfinite(score.value)),
        key=lambda s: s.value,
    )
    listed = run.review(data, tmp_path / "review", scores=tiny_run / "scores.csv", top=1)
    assert listed.cases == (worst.case,)


def test_cases_that_people_have_judged_completely_are_not_predicted(data, tiny_run):
    with pytest.raises(DataError, match="people have judged all that the model knows"):
        run.propose(tiny_run, data, split="test", device="cpu")


@pytest.mark.parametrize(
    ("ending", "label_format"), [(".seg.dcm", "dicom-seg"), (".rtstruct.dcm", "rtstruct")]
)
def test_corrections_come_back_through_dicom(data, tiny_run, tmp_path, ending, label_format):
    """The loop on a DICOM series: the corrected object has a name of its own and refers to the series."""
    scan = read_image([data / "images" / f"{CASE}.nii.gz"])
    write_series(
        tmp_path / "clinic/series", np.rint(scan.data[0]).astype(np.int16)[::-1, ::-1], _flipped(scan)
    )
    manifest = read_manifest(data)
    data_set = DataSet("clinic", {0: "background", 1: "liver"}, "ct")
    case = Case("patient", (tmp_path / "clinic/series",), data_set="clinic", split="train")
    write_manifest(Manifest(manifest.label_space, {"clinic": data_set}, (case,)), tmp_path / "clinic/data")
    folder = tmp_path / "clinic/data"
    run.propose(tiny_run, folder, device="cpu")
    run.review(folder, tmp_path / "review", label_format=label_format)
    ready = tmp_path / "review/labels" / f"patient{ending}"
    assert run.correct(folder, [ready]).unchanged == ("patient",)

    nifti = tmp_path / "review/labels/patient.nii.gz"
    drawn = read_labels(nifti)
    box = (slice(8, 14), slice(8, 14), slice(5, 9))
    drawn.data[box] = manifest.label_space.index("spleen")
    sent = tmp_path / "from_the_archive" / "1.2.3.dcm"
    sent.parent.mkdir()
    write_labels(
        sent,
        drawn,
        like=tmp_path / "clinic/series",
        names=manifest.label_space.names,
        label_format=label_format,
    )
    result = run.correct(folder, [sent])
    assert result.states["patient"]["spleen"] == "corrected"
    corrected = read_manifest(folder)
    labels = read_case_labels(corrected.cases[0], corrected)
    spleen = manifest.label_space.index("spleen")
    assert np.array_equal(labels.data == spleen, drawn.data == spleen)


def _flipped(scan: Volume) -> np.ndarray:
    """The affine of a scan whose first two axes run backwards: slices of DICOM have left-handed axes in RAS."""
    affine = scan.affine.copy()
    shape = np.array(scan.shape)
    affine[:3, 3] = scan.affine[:3, :3] @ [shape[0] - 1, shape[1] - 1, 0] + scan.affine[:3, 3]
    affine[:3, :2] *= -1
    return affine


def test_the_commands_of_the_loop(command, data, tiny_run, tmp_path):
    assert command("predict", tiny_run, "--into", data, "--device", "cpu").code == 0
    answer = command("review", data, "-o", tmp_path / "review", "--json")
    assert (answer.code, len(json.loads(answer.out)["cases"])) == (0, 3)
    answer = command("import", tmp_path / "review", "--into", data, "--verified", "kidneys")
    assert answer.code == 0, answer.err
    assert "kidneys verified (0 voxels)" in answer.out
    refused = command("import", tmp_path / "review", "--into", data, "--modality", "ct")
    assert refused.code == 2
    assert "--modality does not go with --into" in refused.err
    assert "name a folder" in command("import", tmp_path / "review").err
    assert "--into MANIFEST" in command("predict", tiny_run).err
    assert "leave out SCANS" in command("predict", tiny_run, data, "--into", data).err
