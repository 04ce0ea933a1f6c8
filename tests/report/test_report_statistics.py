import math

import numpy as np
import pytest
from scipy.stats import t as student

from labelwise.report.statistics import (
    FEWEST_PATIENTS,
    Clusters,
    Interval,
    defined_mean,
    defined_sd,
    draw_patients,
    estimate,
    holm,
    patient_means,
    seed_error,
    signed_rank_p,
    two_level_p,
    with_seeds,
)

NAN = math.nan


def estimated(values, patients=None, weights=None, resamples=2000):
    patients = np.arange(len(values)) if patients is None else patients
    weights = np.eye(values.shape[1]) if weights is None else weights
    draws = draw_patients(int(patients.max()) + 1, resamples, seed=0)
    return estimate(Clusters.of(values, patients), weights, draws)


def test_the_error_of_single_cases_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(size=(40, 1))
    found = estimated(values)[0]
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(40))


def test_the_interval_of_normal_values_is_about_that_of_student():
    values = np.random.default_rng(0).normal(size=(200, 1))
    found = estimated(values, resamples=20_000)[0]
    reach = student.ppf(0.975, 199) * found.error
    assert found.interval == pytest.approx((found.mean - reach, found.mean + reach), abs=0.15 * reach)


def test_a_skewed_sample_reaches_farther_on_its_long_side():
    values = np.r_[np.full((36, 1), 0.9), np.full((4, 1), 0.1)] + np.random.default_rng(0).normal(
        scale=0.01, size=(40, 1)
    )
    found = estimated(values)[0]
    assert found.mean - found.interval.low > 1.5 * (found.interval.high - found.mean)


def test_a_constant_is_its_own_interval():
    found = estimated(np.full((FEWEST_PATIENTS, 1), 0.25))[0]
    assert found.interval == (0.25, 0.25)


def test_a_mean_over_classes_knows_that_they_vary_together():
    """Two equal classes are as uncertain as one, two opposite ones are certain."""
    column = np.random.default_rng(1).normal(size=(40, 1))
    half = np.array([[0.5, 0.5]])
    same = estimated(np.hstack([column, column]), weights=half)[0]
    assert same.error == pytest.approx(estimated(column)[0].error)
    assert estimated(np.hstack([column, -column]), weights=half)[0].error == pytest.approx(0, abs=1e-12)


def test_holes_are_no_zeros():
    values = np.random.default_rng(2).normal(5, 1, size=(80, 2))
    values[::2, 1] = NAN
    found = estimated(values)
    assert found[1].patients == 40
    assert found[1].mean == pytest.approx(np.nanmean(values[:, 1]))
    kept = values[1::2, 1:]
    # One degree of freedom is counted over all patients, also those without a value.
    assert found[1].error == pytest.approx(kept.std(ddof=1) / math.sqrt(40), rel=0.02)


def test_a_row_without_a_value_stays_undefined():
    found = estimated(np.full((40, 1), NAN), weights=np.array([[NAN]]))[0]
    assert math.isnan(found.mean)
    assert found.patients == 0


def test_patients_count_once_however_many_cases_they_have():
    values = np.array([1.0, 3.0, 10.0, NAN])
    np.testing.assert_array_equal(patient_means(values, np.array([0, 0, 1, 1])), [2.0, 10.0])


def test_the_spread_of_seeds_adds_in_square():
    seeds = seed_error(np.array([0.7, 0.8]), np.array([0.5, 0.6]))
    assert seeds.error == pytest.approx(math.sqrt(2 * 0.005 / 2))
    assert seeds.freedom == pytest.approx(2)
    reach = student.ppf(0.975, 2) * seeds.error
    low, high = with_seeds(0.5, Interval(0.4, 0.7), seeds)
    assert (low, high) == pytest.approx((0.5 - math.hypot(0.1, reach), 0.5 + math.hypot(0.2, reach)))


def test_a_single_training_says_nothing_about_seeds():
    assert math.isnan(seed_error(np.array([0.7]), np.array([0.5, 0.6])).error)
    assert with_seeds(0.5, Interval(0.4, 0.7), seed_error(np.array([0.7]))) == (0.4, 0.7)


def test_the_two_level_test_is_a_t_test_if_only_patients_vary():
    values = np.random.default_rng(3).normal(0.3, 1, size=(20, 1))
    found = estimated(values)[0]
    quiet = seed_error(np.array([1.0, 1.0]))
    expected = 2 * student.sf(abs(values.mean()) / found.error, 19)
    assert two_level_p(found, quiet) == pytest.approx(expected)
    assert math.isnan(two_level_p(found, seed_error(np.array([1.0]))))


def test_the_mean_leaves_out_what_is_undefined():
    values = np.array([[1.0, NAN], [3.0, NAN]])
    np.testing.assert_array_equal(defined_mean(values, axis=0), [2.0, NAN])


def test_the_spread_needs_two_values_and_divides_by_one_less():
    assert defined_sd(np.array([1.0, 3.0, NAN])) == pytest.approx(math.sqrt(2))
    assert math.isnan(defined_sd(np.array([1.0, NAN])))


def test_holm_multiplies_the_smallest_by_the_number_of_tests():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


def test_holm_never_exceeds_one_and_does_not_count_undefined_tests():
    np.testing.assert_allclose(holm(np.array([0.6, NAN, 0.4])), [0.8, NAN, 0.8])
    assert holm(np.array([0.9, 0.8])).max() == 1.0
    assert holm(np.array([])).size == 0


def test_five_improvements_out_of_five_give_the_exact_smallest_p():
    """All 2^5 sign patterns are equally likely, two of them as extreme as this one."""
    assert signed_rank_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, NAN])) == pytest.approx(2 / 32)


def test_equal_runs_have_p_one_and_no_pair_has_none():
    assert signed_rank_p(np.zeros(7)) == 1.0
    assert math.isnan(signed_rank_p(np.array([NAN])))
    assert signed_rank_p(np.array([0.3])) == 1.0


def test_rounding_errors_are_no_differences_and_hide_no_ties():
    assert signed_rank_p(np.array([1e-17, -1e-17, 3e-17])) == 1
    five_of_six = np.array([0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3, 0.9 - 0.8, 0.7 - 0.8, 0.6 - 0.5])
    assert signed_rank_p(five_of_six) == pytest.approx(2 * 7 / 64)
