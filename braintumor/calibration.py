"""Whether a probability means what it says: temperature, reliability, errors made with confidence."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from braintumor.errors import UserError
from braintumor.intervals import Resamples, named, percentile_interval, share

CONFIDENT = 0.9  # an error with more than this probability is one that no threshold would have caught
LIMITS = 0.05, 20.0  # of the temperature


def calibrate(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Turn logits of shape (n, classes) into probabilities at a temperature, float64."""
    return softmax(logits.astype(np.float64) / temperature, axis=1)


def log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float = 1) -> np.ndarray:
    """Return the negative logarithm of each image's probability of its own class, shape (n,)."""
    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return -logs[np.arange(len(labels)), labels]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest log-loss (Guo et al. 2017, arXiv:1706.04599).

    Parameters
    ----------
    logits : ndarray of shape (n, classes)
        Of images that did not train the network.
    labels : ndarray of shape (n,), int

    Returns
    -------
    float
        Above 1 for a network that is too sure, below for one that is not sure enough; between 0.05 and 20. 1 where
        no image is wrong: the lowest log-loss is then that of no doubt at all, which a few images do not prove.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    # The log-loss is convex in the temperature's inverse, so it has one minimum along the logarithm too.
    found = minimize_scalar(
        lambda exponent: log_loss(logits, labels, np.exp(exponent)).mean(),
        bounds=np.log(LIMITS),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each confidence: of equal width, each with its upper edge."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _gaps(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """Return each image's confidence less its rightness, in its bin's column: shape (n, bins)."""
    gaps = np.zeros((len(right), bins))
    gaps[np.arange(len(right)), _bins(confidence, bins)] = confidence - right
    return gaps


def calibration_errors(
    logits: np.ndarray, labels: np.ndarray, temperature: float, bins: int
) -> dict[str, np.ndarray]:
    """Return what the calibration scores are sums of, per image.

    Returns
    -------
    dict
        ``ece`` of shape (n, bins): confidence less rightness of the predicted class, in the column of its bin. The
        means of the columns, without their signs, add up to the expected calibration error (Naeini et al. 2015).
        ``brier`` of shape (n,): Brier's score (1950) over all classes, 0 to 2. ``log_loss`` of shape (n,).
    """
    probabilities = calibrate(logits, temperature)
    truth = np.eye(logits.shape[1])[labels]
    right = (probabilities.argmax(1) == labels).astype(float)
    return {
        "ece": _gaps(probabilities.max(1), right, bins),
        "brier": ((probabilities - truth) ** 2).sum(1),
        "log_loss": log_loss(logits, labels, temperature),
    }


def score_calibration(
    logits: np.ndarray, labels: np.ndarray, temperature: float, bins: int, resamples: Resamples | None = None
) -> dict[str, float]:
    """Score probabilities, before and after calibration.

    Parameters
    ----------
    logits : ndarray of shape (n, classes)
    labels : ndarray of shape (n,), int
    temperature : float
    bins : int
        Of the expected calibration error, all of one width.
    resamples : Resamples, optional
        Of the images' groups: gives each figure its interval.

    Returns
    -------
    dict
        ece, brier, log_loss and confident_errors, each with ``_before`` and ``_after``; the latter is the share of
        the errors made with more than 90% confidence, with Wilson's interval, left out without errors.
    """
    scores = {}
    for when, at in (("before", 1.0), ("after", temperature)):
        scores |= named(f"confident_errors_{when}", confident_errors(calibrate(logits, at), labels))
        for name, parts in calibration_errors(logits, labels, at, bins).items():
            scores[f"{name}_{when}"] = float(np.abs(parts.mean(0)).sum())
            if resamples is not None:
                sizes = resamples.sums(np.ones(len(labels)))
                means = resamples.sums(parts).reshape(len(sizes), -1) / sizes[:, None]
                low, high = percentile_interval(np.abs(means).sum(1))
                scores |= {f"{name}_{when}_low": low, f"{name}_{when}_high": high}
    return {name: round(value, 4) for name, value in scores.items()}


def confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float] | None:
    """Return the share of the errors made with more than 90% confidence and its interval; None without errors."""
    wrong = probabilities.argmax(1) != labels
    return share(probabilities.max(1)[wrong] > CONFIDENT) if wrong.any() else None


def reliability(logits: np.ndarray, labels: np.ndarray, temperature: float, bins: int) -> pd.DataFrame:
    """Compare confidence and accuracy, bin by bin, before and after calibration.

    Returns
    -------
    DataFrame with columns calibration, bin, confidence, accuracy, low, high and images
        ``calibration`` is before or after, ``bin`` counts from 1; empty ones are left out. ``confidence`` is the
        mean of the bin, ``low`` and ``high`` are Wilson's interval of its accuracy.
    """
    rows = []
    for when, at in (("before", 1.0), ("after", temperature)):
        probabilities = calibrate(logits, at)
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
        numbers = _bins(confidence, bins)
        for number in np.unique(numbers):
            part = numbers == number
            row = number + 1, confidence[part].mean(), *share(right[part]), int(part.sum())
            rows.append((when, *row))
    columns = ["calibration", "bin", "confidence", "accuracy", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns).round(4)


def load_temperature(file: Path) -> float:
    """Read the temperature that the stage calibrate fitted.

    Raises
    ------
    UserError
        If the file cannot be read, or has no temperature over 0.
    """
    try:
        temperature = float(json.loads(file.read_text(encoding="utf-8"))["temperature"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: has no temperature ({error!r}): run dvc repro calibrate") from None
    if not temperature > 0:
        raise UserError(f"{file}: a temperature of {temperature:g} is not over 0: run dvc repro calibrate")
    return temperature
