"""95% intervals: Wilson's for proportions, a bootstrap over groups for every other score."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion (Wilson 1927); `successes` is rounded."""
    interval = binomtest(round(successes), n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def share(right: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of values from 0 to 1, one at least, with the Wilson interval of as many zeros and ones.

    Where the values are means themselves they spread less than that, and the interval is rather too wide.
    """
    return (float(np.mean(right)), *wilson_interval(np.sum(right), len(right)))


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile interval of a score over resamples; undefined ones (nan) are left out.

    Parameters
    ----------
    values : ndarray of shape (resamples,)
        At least one of them a number.
    """
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def named(name: str, score: tuple[float, float, float] | None) -> dict[str, float]:
    """Name a score and its bounds, ``x``, ``x_low`` and ``x_high``, rounded to four decimals; nothing for None."""
    ends = ("", "_low", "_high") if score else ()
    return {f"{name}{end}": round(float(value), 4) for end, value in zip(ends, score or (), strict=True)}


@dataclass(frozen=True)
class Resamples:
    """Bootstrap samples of whole groups (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    The images of one patient resemble one another, so they are drawn or left out together.

    Attributes
    ----------
    counts : ndarray of shape (resamples, groups), float64
        How often each sample has each group.
    group : ndarray of shape (n,), int
        Group of each image, from 0.
    """

    counts: np.ndarray
    group: np.ndarray

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add up values of images over each sample.

        Parameters
        ----------
        values : ndarray of shape (n, ...)

        Returns
        -------
        ndarray of shape (resamples, ...), float64
        """
        flat = values.reshape(len(values), -1).astype(np.float64)
        by_group = np.stack(
            [np.bincount(self.group, column, minlength=self.counts.shape[1]) for column in flat.T], axis=1
        )
        return (self.counts @ by_group).reshape(-1, *values.shape[1:])

    def weights(self, most: int = 4_000_000) -> Iterator[np.ndarray]:
        """Yield how often each sample has each image, as blocks of shape (some resamples, n), float64.

        Parameters
        ----------
        most : int
            Numbers in a block, so that memory does not grow with the resamples.
        """
        step = max(1, most // len(self.group))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step][:, self.group]


def resample_groups(groups: np.ndarray, resamples: int, seed: int) -> Resamples:
    """Draw as many groups as there are, with replacement, again and again.

    Parameters
    ----------
    groups : ndarray of shape (n,)
        Group of each image, such as its patient.
    resamples : int
    seed : int
    """
    names, group = np.unique(groups, return_inverse=True)
    n = len(names)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    return Resamples(counts.astype(np.float64), group)


def mean_over_groups(values: np.ndarray, resamples: Resamples) -> tuple[float, float, float]:
    """Return the mean of images' values with its 95% percentile interval over resampled groups.

    Parameters
    ----------
    values : ndarray of shape (n,)
    resamples : Resamples
        Of the groups of the same images.
    """
    means = resamples.sums(values) / resamples.sums(np.ones(len(values)))
    return (float(np.mean(values)), *percentile_interval(means))
