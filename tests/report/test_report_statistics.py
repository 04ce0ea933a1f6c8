import math

import numpy as np
import pytest

from labelwise.report.statistics import (
    bootstrap_means,
    defined_mean,
    defined_sd,
    holm,
    percentile_interval,
    signed_rank_p,
)

NAN = math.nan


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


def test_the_bootstrap_of_a_constant_is_the_constant():
    resampled = bootstrap_means(np.full((6, 2), 0.25), resamples=50, seed=0)
    np.testing.assert_allclose(resampled, 0.25)


def test_the_bootstrap_spreads_like_the_standard_error():
    values = np.random.default_rng(1).normal(size=(200, 1))
    resampled = bootstrap_means(values, resamples=4000, seed=0)
    assert resampled.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)


def test_the_bootstrap_draws_whole_cases():
    """Two classes with equal values in each case stay equal in each resample."""
    column = np.random.default_rng(1).normal(size=(9, 1))
    resampled = bootstrap_means(np.hstack([column, column]), resamples=100, seed=0)
    np.testing.assert_allclose(resampled[:, 0], resampled[:, 1])


def test_a_class_without_values_stays_undefined_in_the_bootstrap():
    resampled = bootstrap_means(np.array([[1.0, NAN], [2.0, NAN]]), resamples=10, seed=0)
    assert np.isnan(resampled[:, 1]).all()
    assert percentile_interval(resampled[:, 1]) == pytest.approx((NAN, NAN), nan_ok=True)


def test_the_interval_holds_the_middle_95_percent():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
