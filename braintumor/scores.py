"""Scores of predictions: what counts right, per class and in all, with intervals."""

import numpy as np
import pandas as pd

from braintumor.intervals import Resamples, named, percentile_interval, wilson_interval
from braintumor.ranking import class_areas, resampled_areas
from braintumor.subsets import Subset


def confusion_matrices(
    labels: np.ndarray, predicted: np.ndarray, classes: int, resamples: Resamples | None = None
) -> np.ndarray:
    """Count what was taken for what.

    Parameters
    ----------
    labels, predicted : ndarray of shape (n,), int
    classes : int
    resamples : Resamples, optional
        Count in each of them rather than in the test set.

    Returns
    -------
    ndarray of shape (1 or resamples, classes, classes), float64
        Actual classes are rows, predicted ones columns.
    """
    cells = np.zeros((len(labels), classes, classes))
    cells[np.arange(len(labels)), labels, predicted] = 1
    return cells.sum(0, keepdims=True) if resamples is None else resamples.sums(cells)


def macro_scores(matrices: np.ndarray, left_out: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return scores over all classes, for many confusion matrices at once.

    As scikit-learn has them: a class without images or predictions has precision, recall and f1 of 0, the balanced
    accuracy is over the classes that have images, MCC is Gorodkin's (2004) and kappa Cohen's (1960).

    Parameters
    ----------
    matrices : ndarray of shape (m, classes, classes)
    left_out : ndarray of shape (m, classes), bool, optional
        Classes that a resample has not drawn: no score is over them, and where it has drawn a single one, MCC and
        kappa are nan in place of 0.

    Returns
    -------
    dict of ndarrays of shape (m,)
    """
    out = np.zeros(matrices.shape[:2], bool) if left_out is None else left_out
    right = np.diagonal(matrices, axis1=1, axis2=2)
    actual, predicted = matrices.sum(2), matrices.sum(1)
    n, hits = actual.sum(1), right.sum(1)
    by_chance = (actual * predicted).sum(1)
    spread = (n**2 - (actual**2).sum(1)) * (n**2 - (predicted**2).sum(1))
    recall = _ratio(right, actual)
    alone = out.any(1) & ((actual > 0).sum(1) == 1)

    def mean(scores: np.ndarray) -> np.ndarray:
        return np.where(out, 0, scores).sum(1) / (~out).sum(1)

    return {
        "accuracy": hits / n,
        "balanced_accuracy": recall.sum(1) / (actual > 0).sum(1),
        "precision": mean(_ratio(right, predicted)),
        "recall": mean(recall),
        "f1": mean(_ratio(2 * right, actual + predicted)),
        "mcc": np.where(alone, np.nan, _ratio(n * hits - by_chance, np.sqrt(spread))),
        "kappa": np.where(alone, np.nan, _ratio(n * hits - by_chance, n**2 - by_chance)),
    }


def not_drawn(matrix: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Say which classes of a test set its resamples lack: shape (m, classes), bool."""
    return (matrix.sum(1) > 0) & (matrices.sum(2) == 0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, with 0 for what would be 0 / 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def score_predictions(
    labels: np.ndarray, probabilities: np.ndarray, resamples: Resamples
) -> dict[str, tuple[float, float, float]]:
    """Score a test set over all its classes.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
    probabilities : ndarray of shape (n, classes)
        The most probable class is predicted.
    resamples : Resamples
        Of the groups of the same images.

    Returns
    -------
    dict of name to (value, low, high)
        accuracy, balanced_accuracy, precision, recall and f1 (macro), mcc, kappa, auc and average_precision
        (macro, one class against the rest).
    """
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    matrix, matrices = (confusion_matrices(labels, predicted, classes, drawn) for drawn in (None, resamples))
    values = macro_scores(matrix)
    bounds = macro_scores(matrices, not_drawn(matrix[0], matrices))
    scores = {name: (float(values[name][0]), *percentile_interval(bounds[name])) for name in values}
    areas, resampled = class_areas(labels, probabilities), resampled_areas(labels, probabilities, resamples)
    for name, area, over in zip(("auc", "average_precision"), areas, resampled, strict=True):
        drawn = ~np.isnan(over)
        macro = np.nansum(over, axis=0)[drawn.any(0)] / drawn.sum(0)[drawn.any(0)]
        if not np.isnan(area).all():
            scores[name] = (float(np.nanmean(area)), *percentile_interval(macro))
    return scores


def score_classes(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str], resamples: Resamples
) -> pd.DataFrame:
    """Score each class against the rest.

    Parameters
    ----------
    labels, probabilities, resamples
        See `score_predictions`.
    classes : list of str

    Returns
    -------
    DataFrame with one row per class
        class, images, then sensitivity, specificity, ppv and npv with Wilson's intervals, and f1, auc and
        average_precision with the bootstrap's, as three columns each: the value, ``_low`` and ``_high``. Missing
        where there is nothing to take a share of.
    """
    predicted, n = probabilities.argmax(1), len(classes)
    matrix = confusion_matrices(labels, predicted, n)[0]
    matrices = confusion_matrices(labels, predicted, n, resamples)
    right = np.diagonal(matrices, axis1=1, axis2=2)
    f1 = np.where(not_drawn(matrix, matrices), np.nan, _ratio(2 * right, matrices.sum(1) + matrices.sum(2)))
    areas, resampled = class_areas(labels, probabilities), resampled_areas(labels, probabilities, resamples)
    rows = []
    for i, name in enumerate(classes):
        hits, actual, taken = matrix[i, i], matrix[i].sum(), matrix[:, i].sum()
        others = len(labels) - actual
        shares = {
            "sensitivity": (hits, actual),
            "specificity": (others - taken + hits, others),
            "ppv": (hits, taken),
            "npv": (others - taken + hits, len(labels) - taken),
        }
        row = {"class": name, "images": int(actual)}
        for score, (part, whole) in shares.items():
            row |= named(score, (part / whole, *wilson_interval(part, int(whole))) if whole else None)
        row |= named(
            "f1", (2 * hits / (actual + taken), *percentile_interval(f1[:, i])) if actual + taken else None
        )
        for score, area, over in zip(("auc", "average_precision"), areas, resampled, strict=True):
            known = not np.isnan(area[i])
            row |= named(score, (area[i], *percentile_interval(over[i])) if known else None)
        rows.append(row)
    scores = [*shares, "f1", "auc", "average_precision"]
    columns = ["class", "images", *(f"{score}{end}" for score in scores for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows, columns=columns)


def flat_metrics(
    subsets: list[Subset], overall: dict[str, tuple[float, float, float]], by_class: pd.DataFrame
) -> dict[str, float | int]:
    """Join the scores of a test set as flat metrics; ``_low`` and ``_high`` are the bounds of 95% intervals.

    Parameters
    ----------
    subsets : list of Subset
        ``accuracy`` is over all images; ``accuracy_distinct`` and so on are over the subset of that name, left out
        where it is empty. Their intervals are Wilson's.
    overall : dict
        From `score_predictions`. The bounds of its accuracy are ``accuracy_groups_low`` and ``_high``: what the
        interval is when groups, not images, are taken as independent.
    by_class : DataFrame
        From `score_classes`.
    """
    scores: dict[str, float | int] = {}
    for subset in subsets:
        suffix = "" if subset.name == "all" else f"_{subset.name}"
        scores["patients" if suffix.startswith("_patients") else f"images{suffix}"] = len(subset.right)
        if subset.accuracy:
            scores |= named(f"accuracy{suffix}", subset.accuracy)
    everything = next(subset.right for subset in subsets if subset.name == "all")
    scores["errors"] = int(len(everything) - everything.sum())
    for name, score in overall.items():
        keys = named("accuracy_groups" if name == "accuracy" else name, score)
        keys.pop("accuracy_groups", None)
        scores |= keys
    for row in by_class.to_dict("records"):
        for name in ("sensitivity", "specificity", "f1"):
            keys = {f"{name}{end}": row[f"{name}{end}"] for end in ("", "_low", "_high")}
            named_keys = {key.replace(name, f"{name}_{row['class']}", 1): value for key, value in keys.items()}
            scores |= {key: value for key, value in named_keys.items() if not np.isnan(value)}
    return scores


def describe_scores(scores: dict[str, float | int]) -> str:
    """Say the accuracies with their intervals, in one line."""
    subsets = (  # each is said where it is a smaller one than another
        ("", "test images", None),
        ("_distinct", "distinct pictures", "images"),
        ("_copy_free", "images without a copy in training", "images"),
        ("_patient_free", "images without a copy or a known patient there", "images_copy_free"),
    )
    parts = []
    for key, name, whole in subsets:
        n = scores[f"images{key}"]
        if f"accuracy{key}" in scores and (whole is None or n < scores[whole]):
            value, low, high = (100 * scores[f"accuracy{key}{end}"] for end in ("", "_low", "_high"))
            parts.append(f"{value:.1f}% [{low:.1f}, {high:.1f}] of {n} {name}")
    return "right: " + "; ".join(parts)
