"""Do the data sets draw the same structures? A site that draws the liver too large is found, by how much, and where."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from conftest import TINY_SETTINGS
from labelwise import run
from labelwise.cohort.folds import leave_each_data_set_out
from labelwise.cohort.manifest import read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import write_labels
from labelwise.report.agreement import Reading, data_sets
from labelwise.run.patients import PATIENTS
from labelwise.settings import put, to_toml
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from tiny_cohort import manifest_of, paper_case

SITES = ("east", "north", "south")
STRUCTURES = ("liver", "spleen")
LIVER = 1


def draw_larger(manifest, case):
    """The site's own way: the liver grows by a voxel, where nothing else was drawn. Returns voxels before and after."""
    drawn = read_case_labels(case, manifest)
    liver = drawn.data == LIVER
    grown = liver | (binary_dilation(liver) & (drawn.data == 0))
    values = dict(enumerate(manifest.label_space.names))
    write_labels(case.labels, replace(drawn, data=np.where(grown, LIVER, drawn.data)), names=values)
    return int(liver.sum()), int(grown.sum())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Three sites of three patients, the last of each tests; the east draws livers larger: its voxels by case."""
    folder = tmp_path_factory.mktemp("sites") / "data"
    make_cohort(
        folder,
        SyntheticConfig(
            dict.fromkeys(SITES, STRUCTURES), 3, unlabelled=0, validation=0, test=1, shape=(24, 24, 16)
        ),
    )
    manifest = read_manifest(folder)
    cases = [case for case in manifest.cases if case.data_set in SITES]
    last = {case.data_set: case.id for case in cases}
    cases = [replace(case, split="test" if case.id in last.values() else "train") for case in cases]
    manifest = replace(
        manifest.replace_cases(cases), data_sets={name: manifest.data_sets[name] for name in SITES}
    )
    truth = {case.id: read_case_labels(case, manifest) for case in cases}
    voxels = {case.id: draw_larger(manifest, case) for case in cases if case.data_set == "east"}
    write_manifest(manifest, folder)
    return folder, truth, voxels


@pytest.fixture(scope="module")
def runs(cohort, tmp_path_factory):
    """Perfect pupils: a model draws as the data sets it learnt from, and in the others what is there."""
    data, truth, _ = cohort
    folds = tmp_path_factory.mktemp("folds")
    run.split(data, folds, by_data_set=True)
    found = []
    for number, left_out in enumerate(SITES):
        folder, fold = folds.parent / f"{folds.name}_runs" / f"pupil_fold{number}", folds / f"fold_{number}"
        manifest = read_manifest(fold)
        (folder / "predictions").mkdir(parents=True)
        (folder / "run.toml").write_text(f'data = "{fold}"\n')
        (folder / PATIENTS).write_text(
            json.dumps({"train": [case.group for case in manifest.split("train")]})
        )
        for case in manifest.split("test"):
            labels = truth[case.id] if case.data_set == left_out else read_case_labels(case, manifest)
            values = dict(enumerate(manifest.label_space.names))
            write_labels(folder / "predictions" / f"{case.id}.nii.gz", labels, names=values)
        run.evaluate(folder, fold, workers=1)
        found.append(folder)
    return found


def test_the_site_that_draws_larger_is_found_with_the_right_dice_and_volume(cohort, runs):
    (found,) = run.agreement(runs).found
    voxels = np.array(list(cohort[2].values()), float)
    cell = found.cells["liver", ("east",), "east"]
    assert cell.volume == pytest.approx(np.exp(np.log(voxels[:, 0] / voxels[:, 1]).mean()), rel=1e-6)
    assert cell.dice == pytest.approx((2 * voxels[:, 0] / voxels.sum(axis=1)).mean(), rel=1e-6)
    assert (cell.cases, cell.patients) == (3, 3)
    for (structure, row, data_set), other in found.cells.items():
        if (structure, row, data_set) != ("liver", ("east",), "east"):
            assert (other.dice, other.volume) == pytest.approx((1, 1)), (structure, row, data_set)
            assert other.cases == (3 if row == (data_set,) else 1)
    sentence, alike = found.sentences()
    assert sentence.startswith("liver: east draws it larger than the others would")
    assert f"predict {100 * (1 - cell.volume):.0f} % less than is drawn there" in sentence
    assert alike == "spleen: predicted and drawn volumes agree to within 5 % in every data set."
    assert [one.data_set for one in found.worst[:3]] == ["east"] * 3
    assert found.worst[0].dice == pytest.approx((2 * voxels[:, 0] / voxels.sum(axis=1)).min())


def test_text_files_json_and_page_tell_the_same(command, runs, tmp_path):
    answer = command("agreement", *runs, "-o", tmp_path, "--cases", 2)
    assert answer.code == 0, answer.err
    assert "Do the data sets draw the same liver? (pupil)" in answer.out
    assert (tmp_path / "agreement.txt").read_text() in answer.out
    facts = json.loads(command("agreement", *runs, "--cases", 2, "--json").out)["runs"][0]
    assert len(facts["cases_that_disagree_most"]) == 2
    rows = list(csv.DictReader((tmp_path / "agreement.csv").read_text().splitlines()))
    assert len(rows) == len(facts["cells"]) == 2 * 3 * 3
    told = {(row["structure"], row["trained_without"], row["data_set"]): float(row["volume"]) for row in rows}
    assert told == {
        (c["structure"], c["trained_without"][0], c["data_set"]): c["volume"] for c in facts["cells"]
    }
    page = run.report(runs, tmp_path / "report.html", pictures=0, viewer_cases=0).read_text(encoding="utf-8")
    assert "<h2>Do the data sets draw the same structures?</h2>" in page
    assert facts["sentences"][0] in page


def test_compared_as_one_run_each_case_is_scored_by_the_model_without_its_data_set(runs):
    found = run.compare(runs)
    assert found.runs == ("pupil",)
    assert len(found.cases) == 9
    assert not found.seen
    assert (
        "Each case is scored by the model of pupil that has not learnt from its data set." in found.to_text()
    )


def test_patients_that_a_model_has_seen_do_not_count(runs):
    folder = runs[1]
    kept = (folder / PATIENTS).read_text()
    seen = next(
        case.group for case in read_manifest(data_of(folder)).split("test") if case.data_set == "south"
    )
    try:
        (folder / PATIENTS).write_text(json.dumps({"train": [seen]}))
        (found,) = run.agreement(runs).found
        assert ("liver", ("north",), "south") not in found.cells
        assert found.seen == 2
        assert "2 scores of patients that a model had seen do not count." in found.to_text(0)
    finally:
        (folder / PATIENTS).write_text(kept)


def data_of(folder):
    return Path((folder / "run.toml").read_text().split('"')[1])


def test_wrong_numbers_are_refused(runs):
    with pytest.raises(ConfigError, match="cannot be negative"):
        run.agreement(runs, cases=-1)
    with pytest.raises(ConfigError, match="no run named"):
        run.agreement([])


def test_a_run_on_data_that_it_learnt_from_says_nothing_of_data_sets(runs, tmp_path):
    (tmp_path / "plain").mkdir()
    for name in ("scores.csv", PATIENTS):
        (tmp_path / "plain" / name).write_bytes((runs[0] / name).read_bytes())
    whole = data_of(runs[0]).parent.parent / "plain_data"
    manifest = read_manifest(data_of(runs[0]))
    write_manifest(manifest.replace_cases(replace(case, split="train") for case in manifest.cases), whole)
    (tmp_path / "plain" / "run.toml").write_text(f'data = "{whole}"\n')
    with pytest.raises(DataError, match="not learnt from") as refused:
        run.agreement([tmp_path / "plain"])
    assert "--by-data-set" in str(refused.value)


# numbers


def reading(case, volume, *, row=("a",), data_set="a", unseen=True, patient="", dice=0.8):
    return Reading(row, data_set, unseen, case, patient or case, "liver", dice, volume)


def test_seeds_are_averaged_and_volumes_are_ratios():
    found = data_sets("r", [reading("1", 0.5), reading("1", 2.0), reading("2", 4.0, dice=0.6)])
    cell = found.cells["liver", ("a",), "a"]
    assert cell.volume == pytest.approx(2.0)  # the geometric mean of 1 and 4
    assert cell.dice == pytest.approx(0.7)
    assert np.isnan(cell.low)


def test_a_missed_structure_has_a_dice_and_no_volume():
    found = data_sets("r", [reading("1", np.nan, dice=0.0)])
    assert found.cells["liver", ("a",), "a"].entry() == ("0.0", "n 1", False)
    (sentence,) = found.sentences()
    assert "hardly find it there" in sentence
    assert json.dumps(found.facts(1), allow_nan=False)


def test_thirty_patients_get_an_interval_that_counts_patients_not_scans():
    chance = np.random.default_rng(0)
    volumes = np.exp(np.log(0.7) + chance.normal(0, 0.05, 40))
    once = [reading(f"{n}", v, patient=f"p{n}") for n, v in enumerate(volumes)]
    twice = [reading(f"{n}again", v, patient=f"p{n}") for n, v in enumerate(volumes)]
    cell = data_sets("r", once).cells["liver", ("a",), "a"]
    assert 0.65 < cell.low < cell.volume < cell.high < 0.75
    doubled = data_sets("r", once + twice).cells["liver", ("a",), "a"]
    assert (doubled.low, doubled.high) == pytest.approx((cell.low, cell.high))
    assert (doubled.cases, doubled.patients) == (80, 40)


# who is left out


def sites(*rows):
    """(data set, split, annotated) of each case."""
    return manifest_of(
        *(
            paper_case(n, data_set=data_set, split=split, annotated=frozenset(structures))
            for n, (data_set, split, structures) in enumerate(rows)
        )
    )


def test_each_data_set_tests_once_with_the_test_cases_of_the_others():
    both = ("liver", "spleen", "pancreas")
    manifest = sites(
        ("a", "train", both), ("a", "test", both), ("b", "train", both), ("b", "validation", both)
    )
    found = leave_each_data_set_out(manifest)
    splits = {name: [case.split for case in fold.cases] for name, fold in found.items()}
    assert splits == {"a": ["test", "test", "train", "validation"], "b": ["train", "test", "test", "test"]}


def test_structures_of_one_data_set_alone_leave_and_so_do_data_sets_without_others(caplog):
    manifest = sites(
        ("a", "train", ("liver", "spleen")), ("b", "train", ("liver", "pancreas")), ("c", "train", ("pancreas",)),
        ("d", "train", ("spleen",)),
    )  # fmt: skip
    found = leave_each_data_set_out(manifest)
    assert list(found) == ["a", "b", "c", "d"]
    lonely = sites(("a", "train", ("liver", "spleen")), ("b", "train", ("liver",)))
    found = leave_each_data_set_out(lonely)
    assert {fold.label_space.structures for fold in found.values()} == {("liver",)}
    assert [case.annotated for case in found["a"].cases] == [{"liver"}, {"liver"}]
    assert "spleen" in caplog.text


def test_data_sets_that_share_no_structure_are_refused(command, tmp_path):
    manifest = sites(("a", "train", ("liver",)), ("b", "train", ("spleen",)))
    write_manifest(manifest, tmp_path / "data")
    answer = command("split", tmp_path / "data", "-o", tmp_path / "folds", "--by-data-set")
    assert answer.code == 3
    assert "no structure is annotated in training cases of two data sets" in answer.err
    assert not (tmp_path / "folds").exists()
    with pytest.raises(ConfigError, match="data sets decide"):
        run.split(tmp_path / "data", tmp_path / "folds", by_data_set=True, folds=2)


def test_a_sweep_leaves_each_data_set_out_and_says_how_far_they_agree(cohort, tmp_path):
    """Nothing is replaced here: a training of two steps for each of three sites."""
    tree: dict = {}
    for key, value in TINY_SETTINGS.items():
        put(tree, key, value)
    (tmp_path / "recipe.toml").write_text(to_toml(tree))
    (tmp_path / "plan.toml").write_text(
        f'data = "{cohort[0]}"\nrecipe = "recipe.toml"\nmethods = ["supervised"]\nby_data_set = true\n'
        '[settings]\n"train.steps" = [2]\n'
    )
    result = run.sweep(tmp_path / "plan.toml", tmp_path / "out", workers=1)
    assert result.done == tuple(f"all/supervised_seed0_fold{n}" for n in range(3)), result.failed
    assert (
        "Do the data sets draw the same liver? (supervised)"
        in (tmp_path / "out" / "all" / "agreement.txt").read_text()
    )
    assert (
        "Do the data sets draw the same structures?" in (tmp_path / "out" / "all" / "report.html").read_text()
    )


def test_nothing_follows_of_a_structure_that_is_hardly_found():
    poor, fine = reading("1", 98.0, dice=0.01), reading("2", 1.01, row=("b",), data_set="b", dice=0.9)
    (sentence,) = data_sets("r", [poor]).sentences()
    assert sentence == (
        "liver: models that have not learnt from a hardly find it there (Dice below 50), so nothing follows about how "
        "it is drawn."
    )
    (sentence,) = data_sets("r", [poor, fine]).sentences()
    assert sentence == "liver: predicted and drawn volumes agree to within 5 % where it is found."
