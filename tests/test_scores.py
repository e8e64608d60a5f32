import pandas as pd
import pytest
from sklearn import metrics

from braintumor.scores import describe_scores, score_predictions, wilson_interval


@pytest.mark.parametrize(("errors", "low", "high"), [(13, 98.31, 99.42), (6, 99.01, 99.79), (3, 99.33, 99.92)])
def test_wilson_intervals_are_the_published_ones(errors, low, high):
    # of 1,311 test images, two decimals
    assert [round(100 * bound, 2) for bound in wilson_interval(1311 - errors, 1311)] == [low, high]


@pytest.fixture
def predictions():
    rows = [  # class, prediction, copy group
        ("a", "a", 1), ("a", "a", 1), ("a", "b", 1), ("a", "a", 2), ("b", "b", 3), ("b", "b", 3), ("b", "c", 4),
        ("c", "c", 5), ("c", "a", 6), ("c", "c", 7),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["class", "prediction", "copy_group"])


def test_scores_are_those_of_scikit_learn(predictions):
    scores = score_predictions(predictions, set())
    labels, predicted = predictions["class"], predictions["prediction"]
    macro = {"average": "macro"}
    expected = {
        "accuracy": 0.7,
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "precision": metrics.precision_score(labels, predicted, **macro),
        "recall": metrics.recall_score(labels, predicted, **macro),
        "f1": metrics.f1_score(labels, predicted, **macro),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
        "f1_a": metrics.f1_score(labels == "a", predicted == "a"),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=5e-5), name
    assert (scores["images"], scores["errors"]) == (10, 3)


def test_sensitivity_and_specificity_are_counted_per_class(predictions):
    scores = score_predictions(predictions, set())
    # a: 3 of 4 found, 1 of 6 others taken for it; b: 2 of 3, 1 of 7; c: 2 of 3, 1 of 7.
    assert [scores[f"sensitivity_{name}"] for name in "abc"] == [0.75, 0.6667, 0.6667]
    assert [scores[f"specificity_{name}"] for name in "abc"] == [0.8333, 0.8571, 0.8571]


def test_each_copy_group_weighs_one_and_the_copied_are_left_out(predictions):
    scores = score_predictions(predictions, seen_copy_groups={1, 6, 99})
    # Groups 1 to 7: 2/3, 1, 1, 0, 1, 0, 1 right.
    assert scores["images_distinct"] == 7
    assert scores["accuracy_distinct"] == pytest.approx((2 / 3 + 4) / 7, abs=5e-5)
    # Without groups 1 and 6: six images, five right.
    assert (scores["images_copy_free"], scores["accuracy_copy_free"]) == (6, 0.8333)
    low, high = wilson_interval(5, 6)
    assert (scores["accuracy_copy_free_low"], scores["accuracy_copy_free_high"]) == (round(low, 4), round(high, 4))


def test_a_subset_without_images_has_no_score(predictions):
    scores = score_predictions(predictions, seen_copy_groups=set(range(10)))
    assert scores["images_copy_free"] == 0
    assert "accuracy_copy_free" not in scores
    assert "copy in training" not in describe_scores(scores)


def test_metrics_are_flat_numbers(predictions):
    assert all(type(value) in (int, float) for value in score_predictions(predictions, set()).values())


def test_the_line_for_people_names_each_accuracy_and_its_interval(predictions):
    line = describe_scores(score_predictions(predictions, {1}))
    assert line.startswith("right: 70.0% [39.7, 89.2] of 10 test images; 66.7% [")
    assert "of 7 distinct pictures; " in line
    # Where none has a copy, that goes without saying.
    assert "copy" not in describe_scores(score_predictions(predictions, set()))
