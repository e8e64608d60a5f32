"""How well probabilities rank: a class before the rest (ROC and PR), what is right before what is wrong (risk)."""

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from braintumor.intervals import Resamples, named, wilson_interval

COVERAGES = 0.9, 0.8  # shares of the images, the most certain, whose risk is a metric


def weighted_areas(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the area under the ROC curve and the average precision for many weightings of the same images.

    The areas are scikit-learn's `roc_auc_score` and `average_precision_score` with `sample_weight`; the scores are
    sorted once for all weightings.

    Parameters
    ----------
    truth : ndarray of shape (n,), bool
    score : ndarray of shape (n,)
        Higher for what is more likely true.
    weights : ndarray of shape (m, n)

    Returns
    -------
    two ndarrays of shape (m,)
        nan where only true or only false images weigh anything.
    """
    order = np.argsort(-score, kind="stable")
    # Images of equal score are one step of the curve.
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    ordered = weights[:, order]
    true = np.add.reduceat(ordered * truth[order], starts, axis=1)
    false = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    trues, falses = true.sum(1), false.sum(1)
    found, alarms = true.cumsum(1), false.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (false * (found - true / 2)).sum(1) / (trues * falses)
        precision = np.where(true > 0, found / (found + alarms), 0)
        average = np.where(falses > 0, (true * precision).sum(1) / trues, np.nan)
    return area, average


def class_areas(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ROC area and average precision of each class against the rest.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
    probabilities : ndarray of shape (n, classes)

    Returns
    -------
    two ndarrays of shape (classes,)
    """
    return tuple(areas[:, 0] for areas in _areas(labels, probabilities, np.ones((1, len(labels)))))


def resampled_areas(
    labels: np.ndarray, probabilities: np.ndarray, resamples: Resamples
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `class_areas` returns for each resample, as two ndarrays of shape (classes, resamples)."""
    blocks = [_areas(labels, probabilities, weights) for weights in resamples.weights()]
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*blocks, strict=True))


def _areas(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    areas = [weighted_areas(labels == i, column, weights) for i, column in enumerate(probabilities.T)]
    return tuple(np.stack(kind) for kind in zip(*areas, strict=True))


def curves(
    labels: np.ndarray, probabilities: np.ndarray, classes: list[str], most: int = 200
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ROC and the PR curve of each class against the rest.

    Points on a straight line between others are left out, and of what remains `most` a class are kept. A class
    that all images or none have has no curve.

    Parameters
    ----------
    labels : ndarray of shape (n,), int
    probabilities : ndarray of shape (n, classes)
    classes : list of str
    most : int

    Returns
    -------
    DataFrame with columns class, false_positive_rate and true_positive_rate
    DataFrame with columns class, recall and precision
    """
    roc = [pd.DataFrame(columns=["class", "false_positive_rate", "true_positive_rate"])]
    pr = [pd.DataFrame(columns=["class", "recall", "precision"])]
    for i, name in enumerate(classes):
        truth = labels == i
        if truth.all() or not truth.any():
            continue
        false_rate, true_rate, _ = roc_curve(truth, probabilities[:, i])
        kept = _thin(len(true_rate), most)
        points = {"false_positive_rate": false_rate[kept], "true_positive_rate": true_rate[kept]}
        roc.append(pd.DataFrame({"class": name} | points))
        precision, recall, _ = precision_recall_curve(truth, probabilities[:, i], drop_intermediate=True)
        kept = _thin(len(recall), most)
        pr.append(pd.DataFrame({"class": name, "recall": recall[kept][::-1], "precision": precision[kept][::-1]}))
    joined = [pd.concat(parts[1:] or parts).reset_index(drop=True).round(5) for parts in (roc, pr)]
    return joined[0], joined[1]


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray, most: int = 200) -> pd.DataFrame:
    """Return the share of errors among the most certain images, for growing shares of them.

    The risk-coverage curve of selective classification (El-Yaniv and Wiener 2010). Images of the
    same confidence come in together.

    Parameters
    ----------
    probabilities : ndarray of shape (n, classes)
    labels : ndarray of shape (n,), int
    most : int
        Points that are kept, evenly.

    Returns
    -------
    DataFrame with columns coverage and risk
    """
    coverage, errors = _covered(probabilities, labels)
    kept = _thin(len(coverage), most)
    n = len(labels)
    return pd.DataFrame({"coverage": coverage[kept] / n, "risk": errors[kept] / coverage[kept]}).round(5)


def _covered(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count images and errors down to each confidence that occurs, from the highest."""
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != labels
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    return ends + 1, wrong[order].cumsum()[ends]


def risks(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of errors among the most certain 90% and 80% of the images, with Wilson's intervals."""
    images, errors = _covered(probabilities, labels)
    scores = {}
    for coverage in COVERAGES:
        # The fewest that make up the share.
        position = np.searchsorted(images, coverage * images[-1])
        n, wrong = int(images[position]), errors[position]
        scores |= named(f"risk_coverage_{100 * coverage:.0f}", (wrong / n, *wilson_interval(wrong, n)))
    return scores


def _thin(n: int, most: int) -> np.ndarray:
    """Return at most `most` of the positions 0 to n - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
