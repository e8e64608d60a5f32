"""A learning-rate range test: the loss while the rate rises from far too small to far too large."""

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d

SMALLEST_PART, LARGEST_PART = 16, 64  # images: a batch norm needs some, a machine has room for so many


def range_rates(start: float, end: float, steps: int) -> list[float]:
    """Return learning rates from `start` to `end`, each the same factor above the last."""
    return np.geomspace(start, end, steps).tolist()


def range_curve(rates: list[float], losses: np.ndarray, smoothing: float) -> pd.DataFrame:
    """Smooth the losses of a range test and cut them off where the training has diverged.

    The test is that of Smith 2017 (arXiv:1506.01186). The smoothed loss is an average with Gaussian weights around
    each step: a running average would come late, and so suggest too high a rate. The curve ends before the first
    loss that is over four times the least before it, as fastai's does, or no number.

    Parameters
    ----------
    rates : list of float
    losses : ndarray of shape (steps,)
    smoothing : float
        Deviation of the weights, as a share of the steps; 0 smooths nothing.

    Returns
    -------
    DataFrame with columns lr, log10_lr (for charts, whose axes are linear), loss and smoothed_loss
    """
    least = np.minimum.accumulate(np.concatenate([[np.inf], losses[:-1]]))
    diverged = ~np.isfinite(losses) | (losses > 4 * least)
    kept = losses[: diverged.argmax()] if diverged.any() else losses
    deviation = smoothing * len(losses)
    smoothed = gaussian_filter1d(kept, deviation, mode="nearest") if deviation and len(kept) else kept
    lr = np.array(rates[: len(kept)])
    return pd.DataFrame({"lr": lr, "log10_lr": np.log10(lr), "loss": kept, "smoothed_loss": smoothed})


def suggest_rate(curve: pd.DataFrame) -> float | None:
    """Return the rate at which the smoothed loss falls fastest along the rate's logarithm, before its minimum.

    None if it falls nowhere.
    """
    falling = curve.iloc[: int(curve["smoothed_loss"].to_numpy().argmin()) + 1] if len(curve) else curve
    if len(falling) < 2:
        return None
    slopes = np.gradient(falling["smoothed_loss"].to_numpy(), np.log(falling["lr"].to_numpy()))
    return float(falling["lr"].iloc[int(slopes.argmin())])


def parts_of(batch_size: int, accumulation: int, launcher: str) -> int:
    """Return in how many equal parts the batch of a training goes through the one process of the range test.

    Parameters
    ----------
    batch_size : int
    accumulation : int
        Parts that each process of the training takes its share in.
    launcher : str
        What starts the training. Without torchrun that is one process, too, which is done as there.

    Returns
    -------
    int
        `accumulation` or, with torchrun, the least multiple of it by which parts have `SMALLEST_PART` to
        `LARGEST_PART` images, where there is one.
    """
    if "torchrun" not in launcher:
        return accumulation
    fitting = (n for n in range(accumulation, batch_size, accumulation) if batch_size % n == 0)
    return next((n for n in fitting if SMALLEST_PART <= batch_size // n <= LARGEST_PART), accumulation)
