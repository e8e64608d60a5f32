"""Accuracy by what a scanner decides and anatomy does not: size, shape, mode and brightness of the files."""

import numpy as np
import pandas as pd

from braintumor.intervals import share

QUARTILES = {1: "quartile 1 (darkest)", 2: "quartile 2", 3: "quartile 3", 4: "quartile 4 (brightest)"}


def score_subgroups(manifest: pd.DataFrame, right: np.ndarray, smallest: int) -> pd.DataFrame:
    """Score the test images apart by each property of their files.

    Parameters
    ----------
    manifest : DataFrame with columns class, width, height, mode and mean
        Of the test images only.
    right : ndarray of shape (len(manifest),), bool
    smallest : int
        A subgroup of fewer images is marked as too small and has no interval.

    Returns
    -------
    DataFrame with columns subgroup, value, images, accuracy, low, high and too_small
        ``size`` is the most frequent size or another, and ``class and size`` says whether it is the class or the
        size that an accuracy comes from; ``intensity`` is the quartile of the mean grey value among the
        test images.
    """
    sizes = manifest["width"].astype(str) + " x " + manifest["height"].astype(str)
    usual = sizes.mode()[0]
    ranks = manifest["mean"].rank(method="average", pct=True)
    size = np.where(sizes == usual, usual, f"not {usual}")
    properties = {
        "size": size,
        "class and size": manifest["class"] + ", " + size,
        "shape": np.where(manifest["width"] == manifest["height"], "square", "not square"),
        "mode": manifest["mode"],
        "intensity": np.ceil(ranks * 4).astype(int).map(QUARTILES.get),
    }
    rows = []
    for name, values in properties.items():
        for value, part in pd.Series(right.astype(float)).groupby(np.asarray(values)):
            accuracy, *bounds = share(part)
            too_small = len(part) < smallest
            rows.append(
                (name, value, len(part), accuracy, *((np.nan, np.nan) if too_small else bounds), too_small)
            )
    columns = ["subgroup", "value", "images", "accuracy", "low", "high", "too_small"]
    return pd.DataFrame(rows, columns=columns).round(4)
