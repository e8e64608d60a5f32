"""The figures of docs/evaluation.md are those of the committed run."""

import json

import pytest

from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/evaluation.md").read_text()


def read(name):
    return json.loads((PROJECT / f"metrics/{name}.json").read_text())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("test", "accuracy"),
        ("test", "accuracy_distinct"),
        ("test", "accuracy_patients"),
        ("test", "accuracy_patients_together"),
        ("test", "accuracy_flips"),
        ("test", "tumour_sensitivity"),
        ("test", "tumour_specificity"),
        ("baselines", "accuracy_intensity"),
        ("baselines", "accuracy_border"),
        ("baselines", "accuracy_network"),
        ("calibration", "confident_errors_after"),
        ("calibration", "risk_coverage_90"),
    ],
)
def test_a_share_stands_there_with_its_interval(file, name):
    scores = read(file)
    value, low, high = (100 * scores[f"{name}{end}"] for end in ("", "_low", "_high"))
    assert f"{value:.1f}% [{low:.1f}, {high:.1f}]" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("test", "f1"),
        ("test", "mcc"),
        ("test", "auc"),
        ("calibration", "ece_before"),
        ("calibration", "log_loss_after"),
    ],
)
def test_a_score_stands_there_with_its_interval(file, name):
    scores = read(file)
    value, low, high = (scores[f"{name}{end}"] for end in ("", "_low", "_high"))
    assert any(
        row in PAGE for row in (f"{value:.3f} | [{low:.3f}, {high:.3f}]", f"{value:.3f} [{low:.3f}, {high:.3f}]")
    )


def test_the_interval_over_groups_stands_beside_the_other():
    scores = read("test")
    low, high = (100 * scores[f"accuracy_groups_{end}"] for end in ("low", "high"))
    assert f"[{low:.1f}, {high:.1f}]" in PAGE
