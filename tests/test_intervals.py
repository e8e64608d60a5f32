import numpy as np
import pytest
from scipy.stats import bootstrap
from statsmodels.stats.proportion import proportion_confint

from braintumor.intervals import (
    mean_over_groups,
    named,
    percentile_interval,
    resample_groups,
    share,
    wilson_interval,
)


@pytest.mark.parametrize(("errors", "low", "high"), [(13, 98.31, 99.42), (6, 99.01, 99.79), (3, 99.33, 99.92)])
def test_wilson_intervals_are_the_published_ones(errors, low, high):
    # of 1,311 test images, two decimals
    assert [round(100 * bound, 2) for bound in wilson_interval(1311 - errors, 1311)] == [low, high]


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (1, 1), (7, 43), (1342, 1404)])
def test_wilson_intervals_are_those_of_statsmodels(successes, n):
    assert wilson_interval(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"))
    values = np.repeat([1, 0], [successes, n - successes])
    assert share(values) == pytest.approx((successes / n, *proportion_confint(successes, n, method="wilson")))


def test_a_share_of_means_has_the_interval_of_as_many_whole_ones():
    assert share(np.array([0.5, 0.5, 1.0])) == pytest.approx((2 / 3, *wilson_interval(2, 3)))


def test_a_score_is_named_with_its_bounds_and_a_missing_one_not_at_all():
    assert named("f1", (0.123456, 0.1, 1)) == {"f1": 0.1235, "f1_low": 0.1, "f1_high": 1.0}
    assert named("f1", None) == {}


def test_the_interval_holds_the_middle_of_the_resamples_that_have_a_value():
    values = np.r_[np.arange(1001) / 1000, np.full(500, np.nan)]
    assert percentile_interval(values) == pytest.approx((0.025, 0.975))


def test_a_resample_has_whole_groups_as_many_as_there_are():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    resamples = resample_groups(groups, 500, seed=1)
    assert (resamples.counts.sum(1) == 3).all()
    (weights,) = resamples.weights()
    for name in "abc":
        assert (weights[:, groups == name][:, 0] == weights[:, groups == name].T).all()
    # Each of three groups is drawn once a resample on average, and left out with a chance of (2/3)^3.
    assert weights.mean() == pytest.approx(1, abs=0.1)
    assert (weights[:, 3] == 0).mean() == pytest.approx(8 / 27, abs=0.06)


def test_sums_are_those_of_the_images_that_were_drawn():
    rng = np.random.default_rng(0)
    groups, values = rng.integers(0, 5, 40), rng.normal(size=(40, 2, 3))
    resamples = resample_groups(groups, 20, seed=2)
    sums = resamples.sums(values)
    assert sums.shape == (20, 2, 3)
    weights = np.concatenate(list(resamples.weights(most=120)))  # in blocks of three
    for i in range(20):
        drawn = np.repeat(np.arange(40), weights[i].astype(int))
        assert sums[i] == pytest.approx(values[drawn].sum(0))


def test_the_seed_says_what_is_drawn():
    groups = np.arange(30)
    first, again, other = (resample_groups(groups, 10, seed).counts for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_the_interval_of_a_mean_is_scipys_where_each_group_is_one_image():
    values = np.random.default_rng(0).uniform(0, 1, 60)
    mean, low, high = mean_over_groups(values, resample_groups(np.arange(60), 20_000, 1))
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.005)


def test_copies_of_images_in_their_groups_do_not_narrow_the_interval():
    right, groups = np.random.default_rng(0).integers(0, 2, 60).astype(float), np.arange(60)

    def interval(right, groups):
        return mean_over_groups(right, resample_groups(groups, 2000, seed=0))[1:]

    alone = interval(right, groups)
    assert interval(np.repeat(right, 10), np.repeat(groups, 10)) == pytest.approx(alone)
    # And it is about as wide as the normal approximation has it.
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 60)
    assert alone == pytest.approx((right.mean() - half, right.mean() + half), abs=0.03)
