import numpy as np
import pytest
from sklearn import metrics

from braintumor.intervals import resample_groups, wilson_interval
from braintumor.ranking import curves, resampled_areas, risk_coverage, risks, weighted_areas


def test_weighted_areas_are_those_of_scikit_learn_with_ties_and_zero_weights():
    rng = np.random.default_rng(0)
    truth, score = rng.random(80) < 0.4, rng.integers(0, 9, 80) / 9
    weights = rng.integers(0, 4, (25, 80)).astype(float)
    area, average = weighted_areas(truth, score, weights)
    for i, weight in enumerate(weights):
        assert area[i] == pytest.approx(metrics.roc_auc_score(truth, score, sample_weight=weight))
        assert average[i] == pytest.approx(metrics.average_precision_score(truth, score, sample_weight=weight))


def test_a_sample_of_one_kind_has_no_area():
    weights = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1]], float)
    area, average = weighted_areas(np.array([True, True, False]), np.array([0.9, 0.8, 0.1]), weights)
    assert np.isnan(area).tolist() == np.isnan(average).tolist() == [True, True, False]
    assert (area[2], average[2]) == (1, 1)


def test_resamples_are_gone_through_in_blocks_without_a_difference(monkeypatch):
    rng = np.random.default_rng(1)
    labels, probabilities = rng.integers(0, 2, 50), rng.random((50, 2))
    resamples = resample_groups(np.arange(50), 40, seed=0)
    whole = resampled_areas(labels, probabilities, resamples)
    blocks = list(resamples.weights(most=350))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 7, 5]
    monkeypatch.setattr(type(resamples), "weights", lambda self: blocks)
    parts = resampled_areas(labels, probabilities, resamples)
    assert parts[0] == pytest.approx(whole[0])
    assert parts[1].shape == (2, 40)


def test_curves_are_thinned_and_keep_their_ends_and_their_area():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 3000)
    probabilities = rng.dirichlet([1, 1, 1], 3000) + 0.3 * np.eye(3)[labels]
    roc, pr = curves(labels, probabilities, ["a", "b", "c"], most=100)
    for i, name in enumerate("abc"):
        points = roc[roc["class"] == name]
        assert len(points) <= 100
        assert points.iloc[[0, -1], 1:].to_numpy().tolist() == [[0, 0], [1, 1]]
        area = metrics.roc_auc_score(labels == i, probabilities[:, i])
        assert metrics.auc(points["false_positive_rate"], points["true_positive_rate"]) == pytest.approx(
            area, abs=0.005
        )
        points = pr[pr["class"] == name]
        assert len(points) <= 100
        assert (points["recall"].iloc[0], points["recall"].iloc[-1]) == (0, 1)
        average = metrics.average_precision_score(labels == i, probabilities[:, i])
        assert metrics.auc(points["recall"], points["precision"]) == pytest.approx(average, abs=0.01)


def test_a_class_that_the_test_set_lacks_has_no_curve():
    roc, pr = curves(np.array([0, 0, 1]), np.eye(3)[[0, 1, 1]] * 0.9, ["a", "b", "c"])
    assert set(roc["class"]) == set(pr["class"]) == {"a", "b"}
    roc, pr = curves(np.array([0, 0]), np.eye(2), ["a", "b"])
    assert roc.columns.tolist() == ["class", "false_positive_rate", "true_positive_rate"]
    assert len(roc) == len(pr) == 0


def test_risk_is_the_share_of_errors_among_the_most_certain():
    # confidence and whether right: 0.9 yes, 0.8 no, 0.7 yes and no, 0.6 yes
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 0, 0])
    table = risk_coverage(probabilities, labels)
    assert table["coverage"].tolist() == [0.2, 0.4, 0.8, 1]
    assert table["risk"].tolist() == [0, 0.5, 0.5, 0.4]
    scores = risks(probabilities, labels)
    assert (scores["risk_coverage_90"], scores["risk_coverage_80"]) == (0.4, 0.5)
    assert scores["risk_coverage_80_low"] == pytest.approx(wilson_interval(2, 4)[0], abs=5e-5)
