import numpy as np
import pytest
from sklearn import metrics

from braintumor.calibration import (
    calibrate,
    confident_errors,
    fit_temperature,
    log_loss,
    reliability,
    score_calibration,
)
from braintumor.intervals import percentile_interval, resample_groups, wilson_interval


def make_logits(n=40_000, sharpness=1.0):
    """Logits whose softmax is what the labels are drawn from, then made sharper: a network that is too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(n, 4))
    labels = (calibrate(logits, 1).cumsum(1) < rng.random((n, 1))).sum(1)
    return logits * sharpness, labels


def test_a_perfectly_calibrated_network_keeps_its_temperature_and_has_no_error():
    logits, labels = make_logits()
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(1, abs=0.02)
    scores = score_calibration(logits, labels, temperature, bins=15)
    assert scores["ece_before"] < 0.01
    assert scores["ece_after"] < 0.01
    table = reliability(logits, labels, temperature, bins=15)
    table = table[table["images"] > 500]  # a deviation of 0.02 at most
    assert len(table) > 15
    assert (table["accuracy"] - table["confidence"]).abs().max() < 0.06


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_an_overconfident_and_a_timid_network_get_the_temperature_that_mends_them(sharpness):
    logits, labels = make_logits(sharpness=sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.02)
    scores = score_calibration(logits, labels, temperature, bins=15)
    assert scores["ece_before"] > 0.1
    assert scores["ece_after"] < 0.01
    assert scores["log_loss_after"] < scores["log_loss_before"]
    assert scores["brier_after"] < scores["brier_before"]
    sure = scores["confident_errors_before"], scores["confident_errors_after"]
    assert (sure[0] > sure[1]) == (sharpness > 1)


def test_no_temperature_is_better_than_the_fitted_one():
    logits, labels = make_logits(2000, sharpness=1.7)
    best = fit_temperature(logits, labels)
    losses = [log_loss(logits, labels, temperature).mean() for temperature in np.linspace(0.3, 5, 300)]
    assert log_loss(logits, labels, best).mean() <= min(losses) + 1e-9


def test_a_network_without_an_error_keeps_its_temperature():
    logits, labels = np.eye(3) * 5.0, np.arange(3)
    assert fit_temperature(logits, labels) == 1
    scores = score_calibration(logits, labels, 1.0, 10)
    assert (
        scores["log_loss_after"]
        == scores["log_loss_before"]
        == pytest.approx(np.log(1 + 2 * np.exp(-5)), abs=1e-4)
    )
    assert "confident_errors_before" not in scores


def test_the_scores_are_those_of_scikit_learn():
    logits, labels = make_logits(500, sharpness=2.0)
    scores = score_calibration(logits, labels, 1.6, bins=10)
    for when, temperature in (("before", 1), ("after", 1.6)):
        probabilities = calibrate(logits, temperature)
        assert scores[f"log_loss_{when}"] == pytest.approx(metrics.log_loss(labels, probabilities), abs=5e-5)
        brier = metrics.brier_score_loss(labels, probabilities, scale_by_half=False)
        assert scores[f"brier_{when}"] == pytest.approx(brier, abs=5e-5)


def test_the_calibration_error_is_counted_by_hand():
    # Confidence 0.6 twice, one of them right; 0.9 twice, both right; two bins: |0.5 - 0.6| and |1 - 0.9|, and with
    # one bin 0.75 against 0.75.
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.9, 0.1]])
    logits, labels = np.log(probabilities), np.array([0, 0, 0, 0])
    assert score_calibration(logits, labels, 1, bins=4)["ece_before"] == pytest.approx(0.1)
    assert score_calibration(logits, labels, 1, bins=2)["ece_before"] == pytest.approx(0)
    table = reliability(logits, labels, 1, bins=4)
    before = table[table["calibration"] == "before"].drop(columns="calibration")
    halves, wholes = (wilson_interval(right, 2) for right in (1, 2))
    expected = np.round([[3, 0.6, 0.5, *halves, 2], [4, 0.9, 1, *wholes, 2]], 4)
    assert before.to_numpy(float) == pytest.approx(expected)


def test_the_intervals_are_those_of_the_resampled_images():
    logits, labels = make_logits(200, sharpness=2.0)
    resamples = resample_groups(np.arange(200) // 4, 60, seed=0)
    scores = score_calibration(logits, labels, 1.5, 8, resamples)
    (weights,) = resamples.weights()
    drawn = [np.repeat(np.arange(200), weight.astype(int)) for weight in weights]
    again = [score_calibration(logits[rows], labels[rows], 1.5, 8) for rows in drawn]
    for name in ("ece_before", "ece_after", "brier_after", "log_loss_before"):
        bounds = percentile_interval(np.array([one[name] for one in again]))
        assert (scores[f"{name}_low"], scores[f"{name}_high"]) == pytest.approx(bounds, abs=1e-4), name


def test_errors_made_with_confidence_are_a_share_of_the_errors():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.6, 0.4], [0.3, 0.7], [0.99, 0.01]])
    labels = np.array([1, 1, 1, 0, 0])  # four errors, two of them above 0.9
    assert confident_errors(probabilities, labels) == pytest.approx((0.5, *wilson_interval(2, 4)))
    assert confident_errors(probabilities, probabilities.argmax(1)) is None
