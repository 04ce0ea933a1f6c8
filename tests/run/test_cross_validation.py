"""A cross-validation from the split to one table: no case is scored by a model that has seen its patient."""

from __future__ import annotations

import json

import pytest

from labelwise import run
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.scores import Score, write_scores
from labelwise.run.patients import PATIENTS
from tiny_cohort import manifest_of, paper_case


@pytest.fixture
def data(tmp_path):
    write_manifest(manifest_of(*(paper_case(n, split="train") for n in range(6))), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def folds(data, tmp_path):
    run.split(data, tmp_path / "folds", folds=3)
    return tmp_path / "folds"


def trained(folder, data, cases, *, value=0.5, seen=None):
    """What a run leaves behind that learnt from `data` and was scored on `cases`."""
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(f'data = "{data}"\n')
    groups = seen if seen is not None else [case.group for case in read_manifest(data).split("train")]
    (folder / PATIENTS).write_text(json.dumps({"train": groups}))
    scores = [
        Score(case, "liver", metric, value + 0.01 * int(case[-1]), "ok", unit)
        for case in cases
        for metric, unit in (("dice", ""), ("hd95", "mm"))
    ]
    write_scores(folder / "scores.csv", scores)
    return folder


def cases_of(folds, number):
    return [case.id for case in read_manifest(folds / f"fold_{number}").split("test")]


def test_the_command_writes_a_manifest_for_each_fold_and_train_finds_it(command, data, tmp_path):
    answer = command("split", data, "-o", tmp_path / "cv", "--folds", 3, "--validation", 1)
    assert answer.code == 0, answer.err
    assert "fold_2/manifest.csv: 3 train, 1 validation, 2 test; 2 patients test" in answer.out
    assert sorted(c for n in range(3) for c in cases_of(tmp_path / "cv", n)) == [
        f"case_{n:03d}" for n in range(6)
    ]
    refused = command("train", "--data", tmp_path / "cv", "--fold", 3)
    assert refused.code == 2
    assert "found     fold_0, fold_1, fold_2" in refused.err
    assert "name one of them" in command("train", "--data", tmp_path / "cv").err
    assert "--fold belongs to --data" in command("train", "--fold", 0).err


def test_folds_are_written_once_and_other_folds_do_not_mix_with_them(data, tmp_path):
    run.split(data, tmp_path / "cv", folds=3)
    run.split(data, tmp_path / "cv", folds=3)
    with pytest.raises(ConfigError, match="other folds"):
        run.split(data, tmp_path / "cv", folds=2)


def test_without_folds_so_many_patients_validate_and_test(data, tmp_path):
    run.split(data, tmp_path / "cut", validation=1, test=0.34, seed=2)
    cut = read_manifest(tmp_path / "cut")
    assert [len(cut.split(name)) for name in ("train", "validation", "test")] == [3, 1, 2]
    with pytest.raises(ConfigError, match="nothing to draw"):
        run.split(data, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="leave out --test"):
        run.split(data, tmp_path / "both", folds=2, test=1)


def test_the_folds_of_a_run_are_one_row_over_all_cases(folds, tmp_path):
    names = ("a_fold0", "a_fold1", "a_fold2")
    runs = [trained(tmp_path / name, folds / f"fold_{n}", cases_of(folds, n)) for n, name in enumerate(names)]
    found = run.compare(runs)
    assert found.runs == ("a",)
    assert len(found.cases) == 6
    assert found.seeds == {"a": 1}
    assert not found.seen, "a patient who tested in one fold and trained in another was called seen"
    assert not found.notes


def test_seeds_of_folds_stay_repetitions(folds, tmp_path):
    runs = [
        trained(
            tmp_path / f"a_seed{seed}_fold{n}", folds / f"fold_{n}", cases_of(folds, n), value=0.4 + seed / 10
        )
        for seed in range(2)
        for n in range(3)
    ]
    found = run.compare(runs)
    assert found.seeds == {"a": 2}
    assert len(found.cases) == 6
    first, second = found.cells["a", "liver", "dice"].seed_means
    assert second - first == pytest.approx(0.1)


def test_a_fold_that_is_missing_is_said(folds, tmp_path):
    runs = [trained(tmp_path / f"a_fold{n}", folds / f"fold_{n}", cases_of(folds, n)) for n in (0, 2)]
    assert "Of the folds of a these are missing: 1." in run.compare(runs).to_text()


def test_a_fold_that_was_scored_on_what_it_learnt_from_is_marked(folds, tmp_path):
    runs = [
        trained(tmp_path / "a_fold0", folds / "fold_0", cases_of(folds, 1)),
        trained(tmp_path / "a_fold1", folds / "fold_1", cases_of(folds, 2)),
        trained(tmp_path / "a_fold2", folds / "fold_2", cases_of(folds, 0)),
    ]
    assert set(run.compare(runs).seen["a"]) == {f"case_{n:03d}" for n in range(6)}


def test_folds_on_one_test_set_are_repetitions_and_those_that_share_some_cases_are_refused(folds, tmp_path):
    same = [
        trained(tmp_path / f"a_fold{n}", folds / f"fold_{n}", ["t1", "t2"], value=n / 10) for n in range(3)
    ]
    assert run.compare(same).seeds == {"a": 3}
    part = [trained(tmp_path / f"b_fold{n}", folds / f"fold_{n}", ["t1", f"t{n + 2}"]) for n in range(2)]
    with pytest.raises(DataError, match="two folds of 'b' have scores of the same case"):
        run.compare(part)
