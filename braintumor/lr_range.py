"""A learning-rate range test: the loss while the rate rises from far too small to far too large."""

import numpy as np
import pandas as pd

from braintumor.errors import UserError


def range_rates(start: float, end: float, steps: int) -> list[float]:
    """Return learning rates from `start` to `end`, each the same factor above the last."""
    return np.geomspace(start, end, steps).tolist()


def range_curve(rates: list[float], losses: np.ndarray, smoothing: float) -> pd.DataFrame:
    """Smooth the losses of a range test and cut them off where the training has diverged.

    The smoothed loss is the exponential average without its bias to the start; the curve ends before the first
    step at which it is over four times the least so far, or no number (Smith 2017, arXiv:1506.01186; the limit is
    fastai's).

    Parameters
    ----------
    rates : list of float
    losses : ndarray of shape (steps,)
    smoothing : float
        Decay of the average, 0 to 1.

    Returns
    -------
    DataFrame with columns lr, loss and smoothed_loss
    """
    curve, average, least = [], 0.0, np.inf
    for step, (rate, loss) in enumerate(zip(rates, losses.tolist(), strict=True), start=1):
        average = smoothing * average + (1 - smoothing) * loss
        smoothed = average / (1 - smoothing**step)
        if not np.isfinite(smoothed) or smoothed > 4 * least:
            break
        least = min(least, smoothed)
        curve.append((rate, loss, smoothed))
    return pd.DataFrame(curve, columns=["lr", "loss", "smoothed_loss"])


def suggest_rate(curve: pd.DataFrame) -> float:
    """Return the rate at which the smoothed loss falls fastest along the logarithm of the rate.

    Raises
    ------
    UserError
        If the loss falls nowhere.
    """
    if len(curve) >= 2:
        slopes = np.gradient(curve["smoothed_loss"].to_numpy(), np.log(curve["lr"].to_numpy()))
        steepest = int(slopes.argmin())
        if slopes[steepest] < 0:
            return float(curve["lr"].iloc[steepest])
    raise UserError(
        "lr_range: the loss falls at no learning rate of the test: lower lr_range.start or raise lr_range.end"
    )
