import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from braintumor.intervals import Resamples, percentile_interval, resample_groups, wilson_interval
from braintumor.scores import (
    confusion_matrices,
    describe_scores,
    flat_metrics,
    macro_scores,
    not_drawn,
    score_classes,
    score_predictions,
)
from braintumor.subsets import make_subsets

CLASSES = ["a", "b", "c"]
ROWS = [  # class, prediction, copy group
    ("a", "a", 1), ("a", "a", 1), ("a", "b", 1), ("a", "a", 2), ("b", "b", 3), ("b", "b", 3), ("b", "c", 4),
    ("c", "c", 5), ("c", "a", 6), ("c", "c", 7),
]  # fmt: skip
SKLEARN = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "mcc": metrics.matthews_corrcoef,
    "kappa": metrics.cohen_kappa_score,
} | {
    name: lambda *labels, of=name, **weights: getattr(metrics, f"{of}_score")(
        *labels, labels=range(3), average="macro", zero_division=0, **weights
    )
    for name in ("precision", "recall", "f1")
}


def score(copied=()):
    """Score the hand-made rows, with some of their copy groups seen in training."""
    table = pd.DataFrame(ROWS, columns=["class", "prediction", "copy_group"])
    table["patient"], table["patient_seen"] = pd.Series([np.nan] * 10, dtype=object), False
    table["copied"] = table["copy_group"].isin(copied)
    labels = table["class"].map(CLASSES.index).to_numpy()
    probabilities = np.full((10, 3), 0.1)
    probabilities[np.arange(10), table["prediction"].map(CLASSES.index)] = 0.8
    resamples = resample_groups(table["copy_group"].to_numpy(), 200, seed=0)
    subsets = make_subsets(table, probabilities, CLASSES)
    overall = score_predictions(labels, probabilities, resamples)
    return flat_metrics(subsets, overall, score_classes(labels, probabilities, CLASSES, resamples))


def random_predictions(n=300, groups=40):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    probabilities = rng.dirichlet([1, 1, 1], n) + 0.6 * np.eye(3)[labels] * (rng.random((n, 1)) < 0.7)
    return labels, probabilities / probabilities.sum(1, keepdims=True), rng.integers(0, groups, n)


def test_scores_are_those_of_scikit_learn():
    scores = score()
    labels, predicted, _ = (list(column) for column in zip(*ROWS, strict=True))
    for name in ("balanced_accuracy", "precision", "recall", "f1", "mcc", "kappa"):
        expected = SKLEARN[name](*([CLASSES.index(label) for label in column] for column in (labels, predicted)))
        assert scores[name] == pytest.approx(expected, abs=5e-5), name
    truth, taken = ([label == "a" for label in column] for column in (labels, predicted))
    assert scores["f1_a"] == pytest.approx(metrics.f1_score(truth, taken), abs=5e-5)
    assert (scores["accuracy"], scores["images"], scores["errors"]) == (0.7, 10, 3)


def test_every_resample_is_scored_as_scikit_learn_would_score_it():
    labels, probabilities, groups = random_predictions()
    resamples = resample_groups(groups, 30, seed=1)
    predicted = probabilities.argmax(1)
    scores = macro_scores(confusion_matrices(labels, predicted, 3, resamples))
    (weights,) = resamples.weights()
    assert set(scores) == set(SKLEARN)
    for name, function in SKLEARN.items():
        expected = [function(labels, predicted, sample_weight=weight) for weight in weights]
        assert scores[name] == pytest.approx(expected), name
    overall = score_predictions(labels, probabilities, resamples)
    assert overall["mcc"] == pytest.approx(
        (SKLEARN["mcc"](labels, predicted), *percentile_interval(scores["mcc"]))
    )


@pytest.mark.filterwarnings("error")
def test_a_class_that_a_resample_does_not_draw_is_left_out_of_it():
    """No error was made, so no resample knows of one, though many lack a class of two groups."""
    for classes in (2, 3):
        labels = np.repeat(np.arange(classes), 4)
        probabilities, groups = 0.8 * np.eye(classes)[labels] + 0.2 / classes, np.arange(4 * classes) // 2
        resamples = resample_groups(groups, 200, seed=0)
        drawn = np.stack([resamples.sums(labels == label) for label in range(classes)], axis=1) > 0
        assert not drawn.all()
        assert classes > 2 or (drawn.sum(axis=1) == 1).any()
        overall = score_predictions(labels, probabilities, resamples)
        assert {name for name, score in overall.items() if score != pytest.approx((1, 1, 1))} == set()
        table = score_classes(labels, probabilities, list("abc")[:classes], resamples)
        assert (table[["f1", "f1_low", "f1_high"]] == 1).all(axis=None)


def test_a_class_without_an_image_in_the_test_set_is_none_that_a_resample_lacks():
    # As scikit-learn: a class without images has scores of 0. The resample that has drawn one class says nothing.
    labels = np.array([0, 0, 1, 1])
    matrices = confusion_matrices(labels, labels, 3, Resamples(np.array([[2.0, 0.0], [1.0, 1.0]]), labels))
    scores = macro_scores(matrices, not_drawn(confusion_matrices(labels, labels, 3)[0], matrices))
    assert scores["recall"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert np.isnan(scores["mcc"]).tolist() == np.isnan(scores["kappa"]).tolist() == [True, False]


def test_the_error_in_a_class_that_a_resample_draws_counts_in_it():
    # Two groups of two images each, one class each; one image of the second is wrong.
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    resamples = Resamples(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), labels)
    matrices = confusion_matrices(labels, predicted, 2, resamples)
    scores = macro_scores(matrices, not_drawn(confusion_matrices(labels, predicted, 2)[0], matrices))
    assert scores["recall"].tolist() == [1, 0.5, 0.75]
    assert scores["precision"].tolist() == pytest.approx([1, 1, (2 / 3 + 1) / 2])
    assert scores["f1"].tolist() == pytest.approx([1, 2 / 3, (4 / 5 + 2 / 3) / 2])
    assert np.isnan(scores["mcc"]).tolist() == np.isnan(scores["kappa"]).tolist() == [True, True, False]


def test_areas_are_the_macro_means_of_scikit_learn_with_the_interval_of_the_resamples():
    labels, probabilities, groups = random_predictions()
    resamples = resample_groups(groups, 30, seed=1)
    (weights,) = resamples.weights()
    overall = score_predictions(labels, probabilities, resamples)

    def auc(weight=None):
        return metrics.roc_auc_score(labels, probabilities, multi_class="ovr", sample_weight=weight)

    def precision(weight=None):
        return metrics.average_precision_score(np.eye(3)[labels], probabilities, sample_weight=weight)

    for name, function in {"auc": auc, "average_precision": precision}.items():
        bounds = percentile_interval(np.array([function(weight) for weight in weights]))
        assert overall[name] == pytest.approx((function(), *bounds)), name


@pytest.mark.parametrize("matrix", [[[5, 0], [0, 0]], [[0, 0], [5, 0]], [[3, 0], [2, 0]], [[0, 5], [0, 0]]])
@pytest.mark.filterwarnings("ignore")  # scikit-learn warns of what is undefined
def test_a_class_that_is_missing_is_scored_as_scikit_learn_does(matrix):
    labels = np.repeat([0, 0, 1, 1], np.ravel(matrix))
    predicted = np.repeat([0, 1, 0, 1], np.ravel(matrix))
    scores = macro_scores(confusion_matrices(labels, predicted, 2))
    macro = {"labels": [0, 1], "average": "macro", "zero_division": 0}
    assert scores["f1"][0] == metrics.f1_score(labels, predicted, **macro)
    assert scores["precision"][0] == metrics.precision_score(labels, predicted, **macro)
    assert scores["balanced_accuracy"][0] == metrics.balanced_accuracy_score(labels, predicted)
    assert scores["mcc"][0] == metrics.matthews_corrcoef(labels, predicted)


def test_sensitivity_and_specificity_are_counted_per_class():
    scores = score()
    # a: 3 of 4 found, 1 of 6 others taken for it; b: 2 of 3, 1 of 7; c: 2 of 3, 1 of 7.
    assert [scores[f"sensitivity_{name}"] for name in "abc"] == [0.75, 0.6667, 0.6667]
    assert [scores[f"specificity_{name}"] for name in "abc"] == [0.8333, 0.8571, 0.8571]
    low, high = wilson_interval(3, 4)
    assert (scores["sensitivity_a_low"], scores["sensitivity_a_high"]) == (round(low, 4), round(high, 4))


def test_the_table_of_classes_has_predictive_values_and_their_intervals():
    labels, probabilities, groups = random_predictions()
    resamples = resample_groups(groups, 30, seed=1)
    table = score_classes(labels, probabilities, CLASSES, resamples).set_index("class")
    predicted = probabilities.argmax(1)
    assert table["images"].tolist() == np.bincount(labels).tolist()
    called = predicted == 1
    assert table.loc["b", "ppv"] == pytest.approx((labels[called] == 1).mean(), abs=5e-5)
    assert table.loc["b", "npv"] == pytest.approx((labels[~called] != 1).mean(), abs=5e-5)
    low, high = wilson_interval((labels[called] == 1).sum(), called.sum())
    assert table.loc["b", ["ppv_low", "ppv_high"]].tolist() == pytest.approx([low, high], abs=5e-5)
    assert table.loc["b", "auc"] == pytest.approx(
        metrics.roc_auc_score(labels == 1, probabilities[:, 1]), abs=5e-5
    )
    (weights,) = resamples.weights()
    scores = [metrics.f1_score(labels == 1, predicted == 1, sample_weight=weight) for weight in weights]
    bounds = percentile_interval(np.array(scores))
    assert table.loc["b", ["f1_low", "f1_high"]].tolist() == pytest.approx(bounds, abs=5e-5)


def test_a_class_that_is_never_predicted_has_no_predictive_value():
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    table = score_classes(labels, probabilities, ["a", "b"], resample_groups(np.arange(3), 100, seed=0))
    assert np.isnan(table.loc[1, ["ppv", "ppv_low", "ppv_high"]].astype(float)).all()
    assert table.loc[1, "sensitivity"] == 0
    assert table.loc[1, "auc"] == 1


def test_each_copy_group_weighs_one_and_the_copied_are_left_out():
    scores = score(copied={1, 6, 99})
    # Groups 1 to 7: 2/3, 1, 1, 0, 1, 0, 1 right.
    assert scores["images_distinct"] == 7
    assert scores["accuracy_distinct"] == pytest.approx((2 / 3 + 4) / 7, abs=5e-5)
    # Without groups 1 and 6: six images, five right.
    assert (scores["images_copy_free"], scores["accuracy_copy_free"]) == (6, 0.8333)
    low, high = wilson_interval(5, 6)
    assert (scores["accuracy_copy_free_low"], scores["accuracy_copy_free_high"]) == (round(low, 4), round(high, 4))


def test_a_subset_without_images_has_no_score():
    scores = score(copied=set(range(10)))
    assert scores["images_copy_free"] == 0
    assert "accuracy_copy_free" not in scores
    assert "copy in training" not in describe_scores(scores)


def test_metrics_are_flat_numbers_and_every_score_has_both_bounds():
    scores = score({1})
    assert all(type(value) in (int, float) for value in scores.values())
    values = [name for name, value in scores.items() if type(value) is float and name[-4:] not in ("_low", "high")]
    assert len(values) > 15
    for name in values:
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"], name
    assert scores["accuracy_groups_low"] <= scores["accuracy"] <= scores["accuracy_groups_high"]


def test_the_line_for_people_names_each_accuracy_and_its_interval():
    line = describe_scores(score({1}))
    assert line.startswith("right: 70.0% [39.7, 89.2] of 10 test images; 66.7% [")
    assert "of 7 distinct pictures; " in line
    # Where none has a copy, that goes without saying.
    assert "copy" not in describe_scores(score())
