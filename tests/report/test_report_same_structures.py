"""A mean over structures is one over the same structures for every run and seed, or it is not given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labelwise.evaluate.scores import Score, summarise
from labelwise.report.compare import compare
from labelwise.report.comparison import MEAN
from labelwise.report.measures import UNDEFINED
from labelwise.report.plots import paired_plot, value_plot

CLASSES, CASES = ("liver", "spleen", "pancreas", "uterus"), 5


def scores_of(chance: np.random.Generator, reference: np.ndarray, found: np.ndarray) -> list[Score]:
    """Dice and HD95 as the evaluation gives them, from what the reference has and what was found, (cases, classes)."""
    scores = []
    for n, name in np.ndindex(reference.shape):
        inside, there = bool(reference[n, name]), bool(found[n, name])
        status = {
            (True, True): "ok",
            (True, False): "prediction_empty",
            (False, True): "reference_empty",
        }.get((inside, there), "both_empty")
        dice = {"ok": chance.uniform(0.3, 0.95), "both_empty": math.nan}.get(status, 0.0)
        hd95 = chance.uniform(1, 30) if status == "ok" else math.nan
        for metric, value, unit in (("dice", dice, ""), ("hd95", hd95, "mm")):
            scores.append(Score(f"case{n}", CLASSES[name], metric, value, status, unit))
    return scores


def mean_of(scores: list[Score], metric: str, name: str) -> float:
    values = [
        s.value for s in scores if (s.metric, s.class_name) == (metric, name) and math.isfinite(s.value)
    ]
    return float(np.mean(values)) if values else math.nan


@pytest.mark.parametrize("draw", range(12))
def test_a_mean_goes_over_the_structures_of_the_reference_or_is_not_given(draw):
    chance = np.random.default_rng(draw)
    reference = chance.random((CASES, 4)) < (0.8, 0.5, 0.3, 0.1)
    seeds = {
        run: [
            scores_of(chance, reference, chance.random((CASES, 4)) < chance.choice([0.4, 0.7, 0.97]))
            for _ in range(1 + draw % 3)
        ]
        for run in "ab"
    }
    counted = [name for name, has in zip(CLASSES, reference.any(axis=0), strict=True) if has]
    comparison = compare(seeds, ("dice", "hd95"), resamples=50)
    assert comparison.averaged == tuple(counted)
    for run in seeds:
        for metric in ("dice", "hd95"):
            by_seed = [[mean_of(scores, metric, name) for name in counted] for scores in seeds[run]]
            cell = comparison.cells[run, MEAN, metric]
            given = [float(np.mean(means)) for means in by_seed]  # NaN where a structure has no value
            np.testing.assert_allclose(cell.seed_means, given, rtol=1e-12)
            if counted and np.isfinite(by_seed).all():
                classes = [comparison.cells[run, name, metric].mean for name in counted]
                assert cell.mean == pytest.approx(np.mean(classes), rel=1e-12)
            else:
                assert math.isnan(cell.mean)
                assert (run, MEAN, metric) not in comparison.best
                lacking = [
                    n for n, row in zip(counted, np.transpose(by_seed), strict=True) if np.isnan(row).any()
                ]
                assert comparison.lacking[run, metric] == tuple(lacking)
                told = " ".join(comparison.cautions())
                title = next(m.title for m in comparison.measures if m.name == metric)
                assert not lacking or f"{run} has no mean {title}: no value of {', '.join(lacking)}" in told
    for table in (comparison.run_table(), *comparison.class_tables()):
        for entry in (entry for row in table.rows for entry in row if entry.text == UNDEFINED):
            assert not set("±[") & set(entry.detail), "a spread around no mean"
    one = summarise(seeds["a"][0])
    for row in one.overall:
        means = [mean_of(seeds["a"][0], row.metric, name) for name in counted]
        np.testing.assert_allclose(row.mean, np.mean(means) if means else math.nan, rtol=1e-12)


@pytest.mark.parametrize("draw", range(6))
def test_the_mean_of_a_case_goes_over_the_same_structures_in_every_run(draw):
    chance = np.random.default_rng(100 + draw)
    reference = chance.random((CASES, 4)) < 0.6
    runs = {
        run: [scores_of(chance, reference, chance.random((CASES, 4)) < 0.8) for _ in range(2)] for run in "ab"
    }
    comparison = compare(runs, ("dice", "hd95"), resamples=50)
    for run, seeds in runs.items():
        for n in range(CASES):
            values = [
                [s.value for s in scores if s.metric == "hd95" and s.case == f"case{n}" and s.status in ok]
                for scores in seeds
                for ok in [("ok", "prediction_empty")]
            ]
            expected = np.mean(values) if all(values) else math.nan
            np.testing.assert_allclose(comparison.per_case[run, MEAN, "hd95"][n], expected, rtol=1e-12)


def test_a_missed_structure_does_not_make_a_mean_distance_better():
    """The run that never finds the pancreas, whose surface is the hardest, has no mean distance."""
    every = np.ones((CASES, 4), dtype=bool)
    missed = every.copy()
    missed[:, 2] = False
    chance = np.random.default_rng(0)
    comparison = compare(
        {"finds": scores_of(chance, every, every), "misses": scores_of(chance, every, missed)}
    )
    assert math.isfinite(comparison.cells["finds", MEAN, "hd95"].mean)
    assert math.isnan(comparison.cells["misses", MEAN, "hd95"].mean)
    assert math.isfinite(comparison.cells["misses", MEAN, "dice"].mean)
    assert not any(key[1:] == (MEAN, "hd95") for key in comparison.best)
    assert "hd95" not in comparison.ranks
    assert math.isnan(comparison.differences["misses", MEAN, "hd95"].mean)
    assert "misses has no mean HD95: no value of pancreas." in comparison.cautions()
    assert "misses has no mean HD95" in comparison.to_text()


def test_a_structure_that_no_reference_has_is_in_no_mean_and_that_is_said():
    reference = np.ones((CASES, 4), dtype=bool)
    reference[:, 3] = False
    invents = reference.copy()
    invents[0, 3] = True
    chance = np.random.default_rng(1)
    comparison = compare(
        {"a": scores_of(chance, reference, reference), "b": scores_of(chance, reference, invents)}
    )
    assert comparison.averaged == CLASSES[:3]
    assert "In no reference, so in no mean over structures: uterus." in comparison.cautions()
    for run in "ab":
        classes = [comparison.cells[run, name, "dice"].mean for name in CLASSES[:3]]
        assert comparison.cells[run, MEAN, "dice"].mean == pytest.approx(np.mean(classes))


def test_plots_say_when_the_mean_of_the_table_is_not_that_of_the_cases():
    chance = np.random.default_rng(0)
    whole = np.ones((CASES, 2), bool)
    partly = whole.copy()
    partly[1:, 1] = False  # the spleen is in the first case only
    for reference, told in ((whole, False), (partly, True)):
        comparison = compare(
            {run: [scores_of(chance, reference, reference)] for run in "ab"}, ("dice",), resamples=50
        )
        (dice,) = comparison.measures
        for plot in (value_plot, paired_plot):
            picture = plot(comparison, dice)
            assert picture is not None
            assert ("different structures" in picture.caption) is told
            assert "of the table" in picture.caption
