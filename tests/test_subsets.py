import numpy as np
import pandas as pd
import pytest

from braintumor.detection import missed_tumours, score_detection
from braintumor.intervals import wilson_interval
from braintumor.predictions import add_probabilities, mark_seen
from braintumor.subgroups import score_subgroups
from braintumor.subsets import make_subsets, right_together, subset_table

CLASSES = ["a", "b"]


@pytest.fixture
def split():
    rows = [  # class, copy group, patient, subset
        ("a", 0, "p", "train"), ("a", 1, "q", "validation"), ("b", 2, None, "train"), ("b", 9, "z", "unused"),
        ("a", 0, "p", "test"), ("a", 3, "p", "test"), ("a", 4, "r", "test"), ("a", 4, "r", "test"),
        ("a", 5, "r", "test"), ("b", 2, None, "test"), ("b", 6, "z", "test"), ("b", 7, None, "test"),
        ("a", 8, "q", "test"),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["class", "copy_group", "patient", "subset"])
    table["path"], table["group"] = [f"{i}.jpg" for i in range(len(table))], table["copy_group"]
    return table


def predict(split, probabilities_of_a):
    probabilities = np.array([[p, 1 - p] for p in probabilities_of_a])
    return add_probabilities(mark_seen(split), CLASSES, probabilities, probabilities), probabilities


def test_what_training_and_validation_have_seen_is_marked(split):
    tested = mark_seen(split)
    assert tested["path"].tolist() == [f"{i}.jpg" for i in range(4, 13)]
    assert tested["copied"].tolist() == [True, False, False, False, False, True, False, False, False]
    # z is in training only as an image that is not used; a missing patient is like no other.
    assert tested["patient_seen"].tolist() == [True, True, False, False, False, False, False, False, True]


def test_who_is_known_by_a_copy_is_known(split):
    # Image 6 of r, who does not train, loses its patient, and its copy 7 gets q, who validates.
    split.loc[[6, 7], "patient"] = [None, "q"]
    tested = mark_seen(split)
    assert tested["patient_seen"].tolist() == [True, True, True, True, False, False, False, False, True]
    assert tested["patient"].isna().tolist()[2:4] == [True, False]
    # A person who trains under a copy's name only.
    split.loc[2, "copy_group"], split.loc[9, ["copy_group", "patient"]] = 6, [10, "z"]
    assert mark_seen(split)["patient_seen"].tolist()[5:7] == [True, True]


def test_the_subsets_are_cut_and_weighed(split):
    tested, probabilities = predict(split, [0.9, 0.1, 0.9, 0.4, 0.1, 0.1, 0.1, 0.9, 0.9])
    # right: 4 yes, 5 no, 6 yes, 7 no (copy of 6), 8 no, 9 yes, 10 yes, 11 no, 12 yes
    subsets = {subset.name: subset for subset in make_subsets(tested, probabilities, CLASSES)}
    expected = {
        "all": [1, 0, 1, 0, 0, 1, 1, 0, 1],
        "distinct": [1, 1, 0, 0.5, 0, 1, 0, 1],  # by group 0, 2, 3, 4, 5, 6, 7, 8
        "copied": [1, 1],
        "copy_free": [0, 1, 0, 0, 1, 0, 1],
        "patient_seen": [1, 0, 1],
        "patient_free": [1, 0, 0, 1, 0],  # image 9 has no known patient, but a copy
        "patients": [1 / 2, 1, 1 / 3, 1],  # p, q, r, z
        # p: 0.9 and 0.1 are a tie, which the first class wins; r: (0.9 + 0.4 + 0.1) / 3 < 0.5
        "patients_together": [1, 1, 0, 1],
    }
    assert {name: subset.right.tolist() for name, subset in subsets.items()} == {
        name: pytest.approx(right) for name, right in expected.items()
    }
    table = subset_table(list(subsets.values())).set_index("subset")
    assert table["images"].tolist() == [9, 9, 2, 7, 3, 5, 7, 7]
    assert table["units"].tolist() == [9, 8, 2, 7, 3, 5, 4, 4]
    low, high = wilson_interval(5, 9)
    assert table.loc["all", ["accuracy", "low", "high"]].tolist() == pytest.approx([5 / 9, low, high], abs=5e-5)


def test_an_empty_subset_is_listed_without_an_accuracy(split):
    split = split[split["subset"] == "test"]
    tested, probabilities = predict(split.assign(patient=None), [0.9] * 9)
    table = subset_table(make_subsets(tested, probabilities, CLASSES)).set_index("subset")
    for name in ("copied", "patient_seen", "patients", "patients_together"):
        assert table.loc[name, "units"] == 0
        assert np.isnan(table.loc[name, "accuracy"])
    assert table.loc["copy_free", "units"] == 9


def test_a_patient_filed_under_two_classes_is_of_the_more_frequent_one():
    tested = pd.DataFrame({"class": ["b", "a", "b"], "patient": ["p", "p", "p"]})
    probabilities = np.array([[0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    assert right_together(tested, probabilities, CLASSES).tolist() == [1]
    assert right_together(tested, 1 - probabilities, CLASSES).tolist() == [0]


def test_small_probabilities_survive_and_the_columns_are_in_place(split):
    probabilities = np.array([[1 - 1.23456789e-9, 1.23456789e-9]] * 9)
    tested = add_probabilities(mark_seen(split), CLASSES, probabilities, probabilities)
    assert tested["probability_b"].tolist() == [1.23457e-9] * 9
    assert tested.columns.tolist() == [
        "class", "copy_group", "patient", "path", "group", "prediction", "probability_a", "probability_b",
        "calibrated_a", "calibrated_b", "copied", "patient_seen",
    ]  # fmt: skip


def test_subgroups_are_scored_apart_and_small_ones_marked():
    manifest = pd.DataFrame(
        {
            "class": list("aaaabbba"),
            "width": [512, 512, 512, 512, 300, 300, 200, 512],
            "height": [512, 512, 512, 512, 300, 400, 300, 512],
            "mode": ["L", "L", "RGB", "RGB", "RGB", "RGB", "RGB", "NA"],
            "mean": [10, 20, 30, 40, 50, 60, 70, 80],
        },
        index=range(100, 108),
    )
    right = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)
    table = score_subgroups(manifest, right, smallest=2).set_index(["subgroup", "value"])
    counts = {key: (row["images"], round(row["accuracy"] * row["images"])) for key, row in table.iterrows()}
    assert counts == {
        ("size", "512 x 512"): (5, 4),
        ("size", "not 512 x 512"): (3, 1),
        ("class and size", "a, 512 x 512"): (5, 4),
        ("class and size", "b, not 512 x 512"): (3, 1),
        ("shape", "square"): (6, 5),
        ("shape", "not square"): (2, 0),
        ("mode", "L"): (2, 2),
        ("mode", "NA"): (1, 1),
        ("mode", "RGB"): (5, 2),
        ("intensity", "quartile 1 (darkest)"): (2, 2),
        ("intensity", "quartile 2"): (2, 1),
        ("intensity", "quartile 3"): (2, 1),
        ("intensity", "quartile 4 (brightest)"): (2, 1),
    }
    assert table.index[table["too_small"]].tolist() == [("mode", "NA")]
    assert np.isnan(table.loc[("mode", "NA"), ["low", "high"]].astype(float)).all()
    low, high = wilson_interval(2, 5)
    assert table.loc[("mode", "RGB"), ["low", "high"]].tolist() == pytest.approx([low, high], abs=5e-5)


def test_a_tumour_that_is_taken_for_another_is_not_missed():
    actual = np.array(["x", "x", "y", "none", "none", "none"], object)
    predicted = np.array(["y", "none", "y", "none", "x", "none"], object)
    scores = score_detection(actual, predicted, "none")
    assert (scores["tumours"], scores["tumours_missed"], scores["false_alarms"]) == (3, 1, 1)
    assert scores["tumour_sensitivity"] == scores["tumour_specificity"] == pytest.approx(2 / 3, abs=5e-5)
    low, high = wilson_interval(2, 3)
    assert (scores["tumour_specificity_low"], scores["tumour_specificity_high"]) == (round(low, 4), round(high, 4))
    assert "tumour_specificity" not in score_detection(actual[:3], predicted[:3], "none")


def test_every_missed_tumour_is_listed_the_most_certain_first():
    predictions = pd.DataFrame(
        {
            "path": ["1", "2", "3", "4", "5"],
            "class": ["x", "none", "y", "x", "x"],
            "prediction": ["none", "none", "none", "x", "none"],
            "probability_none": [0.5, 0.9, 0.8, 0.1, 0.8],
            "patient": ["p", None, "q", "q", None],
        }
    )
    missed = missed_tumours(predictions, "none")
    assert missed["path"].tolist() == ["3", "5", "1"]
    assert missed.columns.tolist() == ["path", "class", "prediction", "probability_none", "patient"]
    assert len(missed_tumours(predictions, None)) == 0
