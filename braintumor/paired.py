"""Two networks on the same test images: is one better, and by how much."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from braintumor.intervals import mean_over_groups, resample_groups


@dataclass(frozen=True)
class Comparison:
    """What two networks get right of the same images.

    Attributes
    ----------
    images, groups : int
    right_a, right_b : int
        Images that each gets right.
    only_a, only_b : int
        The discordant pairs: images that one alone gets right.
    p_value : float
        Of McNemar's exact test (1947), two-sided: the chance of discordant pairs at least as uneven as these if
        both networks were equally good. It takes images as independent.
    difference : float
        Accuracy of B less that of A.
    low, high : float
        Its 95% interval by a bootstrap over groups, which takes only these as independent.
    """

    images: int
    groups: int
    right_a: int
    right_b: int
    only_a: int
    only_b: int
    p_value: float
    difference: float
    low: float
    high: float


def compare_pairs(
    right_a: np.ndarray, right_b: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> Comparison:
    """Compare two networks image by image.

    Parameters
    ----------
    right_a, right_b : ndarray of shape (n,), bool
        Whether each network is right, of the same images in the same order.
    groups : ndarray of shape (n,)
        Group of each image, such as its patient.
    resamples, seed : int
        See `resample_groups`.
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    gains = right_b.astype(float) - right_a
    drawn = resample_groups(groups, resamples, seed)
    difference, low, high = mean_over_groups(gains, drawn)
    return Comparison(
        images=len(gains),
        groups=drawn.counts.shape[1],
        right_a=int(right_a.sum()),
        right_b=int(right_b.sum()),
        only_a=only_a,
        only_b=only_b,
        p_value=float(p_value),
        difference=difference,
        low=low,
        high=high,
    )


def describe_comparison(result: Comparison, a: str, b: str) -> str:
    """Say a comparison in a few lines, with the names of the two networks."""
    n = result.images
    lines = [
        f"{n} test images, {result.groups} groups",
        f"{a}: {100 * result.right_a / n:.2f}% right; {result.only_a} images that {b} gets wrong",
        f"{b}: {100 * result.right_b / n:.2f}% right; {result.only_b} images that {a} gets wrong",
        f"difference {100 * result.difference:+.2f} points "
        f"[{100 * result.low:+.2f}, {100 * result.high:+.2f}] (95%, bootstrap over groups); "
        f"p = {result.p_value:.2g} (exact McNemar)",
    ]
    return "\n".join(lines)
