"""Scores of predictions: what counts right, per class and in all, with intervals."""

import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
)


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion (Wilson 1927); `successes` is rounded."""
    interval = binomtest(round(successes), n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def score_predictions(predictions: pd.DataFrame, seen_copy_groups: set[int]) -> dict[str, float | int]:
    """Score a test set, as flat metrics.

    Parameters
    ----------
    predictions : DataFrame with columns class, prediction and copy_group
        One row per test image.
    seen_copy_groups : set of int
        Copy groups with an image that trained the network or chose its epoch.

    Returns
    -------
    dict
        ``accuracy`` is over all images; in ``accuracy_distinct`` each copy group weighs one, as the share of
        its images that are right; ``accuracy_copy_free`` is over the images without a copy among those seen,
        left out where there is none. ``_low`` and ``_high`` are the bounds of 95% Wilson intervals.
    """
    labels, predicted = predictions["class"].to_numpy(), predictions["prediction"].to_numpy()
    right = pd.Series(labels == predicted)
    classes = sorted(set(labels) | set(predicted))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    distinct = right.groupby(predictions["copy_group"].to_numpy()).mean()
    copy_free = right[~predictions["copy_group"].isin(seen_copy_groups).to_numpy()]
    scores: dict[str, float | int] = {}
    for suffix, values in (("", right), ("_distinct", distinct), ("_copy_free", copy_free)):
        scores[f"images{suffix}"] = len(values)
        if len(values):
            scores[f"accuracy{suffix}"] = values.mean()
            bounds = wilson_interval(values.sum(), len(values))
            scores[f"accuracy{suffix}_low"], scores[f"accuracy{suffix}_high"] = bounds
    scores |= {
        "errors": int((~right).sum()),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "mcc": matthews_corrcoef(labels, predicted),
    }
    matrix = confusion_matrix(labels, predicted, labels=classes)
    for i, name in enumerate(classes):
        negatives = len(labels) - matrix[i].sum()
        scores[f"sensitivity_{name}"] = recall[i]
        scores[f"specificity_{name}"] = (negatives - matrix[:, i].sum() + matrix[i, i]) / max(1, negatives)
        scores[f"f1_{name}"] = f1[i]
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in scores.items()}


def describe_scores(scores: dict[str, float | int]) -> str:
    """Say the accuracies with their intervals, in one line."""
    subsets = (
        ("", "test images"),
        ("_distinct", "distinct pictures"),
        ("_copy_free", "images without a copy in training"),
    )
    parts = [
        f"{100 * scores[f'accuracy{key}']:.1f}% "
        f"[{100 * scores[f'accuracy{key}_low']:.1f}, {100 * scores[f'accuracy{key}_high']:.1f}] "
        f"of {scores[f'images{key}']} {name}"
        for key, name in subsets
        if f"accuracy{key}" in scores and (not key or scores[f"images{key}"] < scores["images"])
    ]
    return "right: " + "; ".join(parts)
