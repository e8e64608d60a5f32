"""What explains a test set: which images are looked at, what resembles them, and how right the maps are."""

import copy

import numpy as np
import pandas as pd
from torch import nn

from braintumor import saliency
from braintumor.batches import Batches
from braintumor.copies import signature, similarity
from braintumor.intervals import Resamples, mean_over_groups, named, resample_groups, share
from braintumor.layers import shuffle_from_the_last

STOPS = 16  # of the shuffling, at most: a network of many layers has several shuffled from one to the next


def choose_images(predictions: pd.DataFrame, samples: int, seed: int) -> np.ndarray:
    """Choose all wrong images, and by lot some right ones of each class.

    Parameters
    ----------
    predictions : DataFrame with columns class and prediction
    samples : int
        Right images of each class; all of a class that has fewer.
    seed : int

    Returns
    -------
    ndarray of int
        Rows of the table: the wrong ones in their order, then the right ones by class.
    """
    rng = np.random.default_rng(seed)
    right = (predictions["class"] == predictions["prediction"]).to_numpy()
    chosen = [np.flatnonzero(~right)]
    for name in sorted(predictions["class"].unique()):
        rows = np.flatnonzero(right & (predictions["class"] == name).to_numpy())
        chosen.append(np.sort(rng.choice(rows, min(samples, len(rows)), replace=False)))
    return np.concatenate(chosen)


def draw(n: int, most: int, seed: int) -> np.ndarray:
    """Draw up to `most` of n positions by lot, in their order."""
    return np.sort(np.random.default_rng(seed).choice(n, min(most, n), replace=False))


def describe_maps(predictions: pd.DataFrame, maps: np.ndarray, size: int, border: float) -> pd.DataFrame:
    """Make the table of the images that are explained, row by row.

    Parameters
    ----------
    predictions : DataFrame with columns path, class, prediction and row
    maps : ndarray of shape (n, h, w)
        From `saliency.gradcam`.
    size : int
        Side of the images, in pixels.
    border : float
        See `saliency.border_shares`.

    Returns
    -------
    DataFrame with columns path, class, prediction, right, row, border_share, peak_x and peak_y
        Four decimals; missing for a map of zeros.
    """
    table = predictions[["path", "class", "prediction", "row"]].reset_index(drop=True)
    table.insert(3, "right", table["class"] == table["prediction"])
    table["border_share"] = saliency.border_shares(saliency.enlarge(maps, size), border).round(4)
    table[["peak_x", "peak_y"]] = saliency.peaks(maps).round(4)
    return table


def nearest_images(images: np.ndarray, rows: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the image that resembles each image most, as the audit compares them; see `copies.similarity`.

    Parameters
    ----------
    images : ndarray of shape (N, size, size), uint8
    rows : ndarray of shape (n,), int
        The images to find one for.
    among : ndarray of shape (m,), int
        The images to find one among.

    Returns
    -------
    nearest : ndarray of shape (n,), int
        Rows of `images`; the first of several that resemble it equally.
    values : ndarray of shape (n,), float64
        Their similarity, -1 to 1, four decimals.
    """
    own, others = (np.stack([signature(images[row]) for row in part]) for part in (rows, among))
    values = similarity(own, others).astype(float).round(4)
    best = values.argmax(axis=1)
    return among[best], values[np.arange(len(rows)), best]


def centre_map(size: int) -> np.ndarray:
    """Return a map that knows nothing and points at the middle: 1 there, falling evenly to 0 in the corners.

    Returns
    -------
    ndarray of shape (size, size), float32
    """
    places = (np.arange(size) + 0.5) / size - 0.5
    return (1 - np.hypot(places, places[:, None]) / np.hypot(0.5, 0.5)).astype(np.float32)


def parts_of(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """Cut a test set into what a measure is given for, by the ending of its name: all, right, wrong, each class.

    Parameters
    ----------
    predictions : DataFrame with columns class and prediction

    Returns
    -------
    dict of str to ndarray of shape (n,), bool
    """
    names = predictions["class"].to_numpy()
    right = names == predictions["prediction"].to_numpy()
    parts = {"": np.full(len(names), True), "_right": right, "_wrong": ~right}
    return parts | {f"_{name}": names == name for name in sorted(set(names))}


def measure_borders(
    predictions: pd.DataFrame, maps: np.ndarray, size: int, width: float, resamples: int, seed: int
) -> dict[str, float | int]:
    """Measure how much of the maps' mass lies near the images' edges, in all, per class, and right and wrong.

    Parameters
    ----------
    predictions : DataFrame with columns class, prediction and group
    maps : ndarray of shape (n, h, w)
        From `saliency.gradcam`, row by row.
    size : int
        Side of the images, in pixels.
    width : float
        Of the border; see `saliency.border_shares`.
    resamples, seed : int
        Of the intervals, which are drawn over groups.

    Returns
    -------
    dict
        ``border_share_even`` is what a map has that is the same everywhere; a map of zeros counts in
        ``empty_maps`` only.
    """
    shares = saliency.border_shares(saliency.enlarge(maps, size), width)
    even = saliency.border_shares(np.ones((1, size, size), np.float32), width)[0]
    scores: dict[str, float | int] = {"empty_maps": int(np.isnan(shares).sum()), "border_share_even": even}
    known, groups = ~np.isnan(shares), predictions["group"].to_numpy()
    for name, part in parts_of(predictions).items():
        own = part & known
        if own.any():
            drawn = resample_groups(groups[own], resamples, seed)
            scores |= named(f"border_share{name}", mean_over_groups(shares[own], drawn))
    return scores


def measure_places(
    predictions: pd.DataFrame, maps: np.ndarray, masks: np.ndarray, resamples: int, seed: int
) -> dict[str, float | int]:
    """Measure how well the maps find the tumours, in all, per class, and right and wrong.

    Parameters
    ----------
    predictions : DataFrame with columns class, prediction and group
    maps : ndarray of shape (n, h, w)
        From `saliency.gradcam`, row by row.
    masks : ndarray of shape (n, size, size), bool
    resamples, seed : int
        Of the intervals of overlaps and of differences, which are drawn over groups.

    Returns
    -------
    dict
        ``pointing``: share of the maps whose largest value lies in the tumour, with its 95% Wilson interval.
        ``overlap``: mean intersection over union at ``overlap_threshold``, the one for all images that makes it
        largest. ``tumour_area``, the share of an image that is tumour, is what a place by chance and a map that is
        the same everywhere have; ``_centre`` is what a map has that always points at the image's middle, and
        ``_over_centre`` by how much the maps are better than that on the same images.
    """
    size = masks.shape[1]
    inside = saliency.points_inside(saliency.peaks(maps), masks)
    overlap, threshold = saliency.best_overlaps(saliency.enlarge(maps, size), masks)
    groups = predictions["group"].to_numpy()
    scores: dict[str, float | int] = {}
    for name, part in parts_of(predictions).items():
        if not part.any():
            continue
        drawn = resample_groups(groups[part], resamples, seed)
        scores[f"located{name}"] = int(part.sum())
        scores |= named(f"pointing{name}", share(inside[part]))
        scores |= named(f"overlap{name}", mean_over_groups(overlap[part], drawn))
    middle = saliency.points_inside(np.full((len(masks), 2), 0.5), masks)
    of_centre, _ = saliency.best_overlaps(np.broadcast_to(centre_map(size), masks.shape), masks)
    drawn = resample_groups(groups, resamples, seed)
    scores |= named("pointing_centre", share(middle))
    scores |= named("overlap_centre", mean_over_groups(of_centre, drawn))
    scores |= named("pointing_over_centre", mean_over_groups(inside.astype(float) - middle, drawn))
    scores |= named("overlap_over_centre", mean_over_groups(overlap - of_centre, drawn))
    return scores | {"overlap_threshold": threshold, "tumour_area": masks.mean()}


def randomise(
    model: nn.Module,
    layer: str,
    batches: Batches,
    masks: np.ndarray | None,
    shuffles: int,
    drawn: Resamples,
    seed: int,
) -> pd.DataFrame:
    """Make the maps again while the network's layers are shuffled, from the last to the first.

    A map that stays as it was does not depend on what the network has learnt, and explains nothing (Adebayo et
    al. 2018, arXiv:1810.03292).

    Parameters
    ----------
    model : nn.Module
    layer : str
        That the maps are made of.
    batches : Batches
        Their labels are the classes to explain, those that the trained network predicts.
    masks : ndarray of shape (n, size, size), bool, or None
        Where the tumours lie, if it is known.
    shuffles : int
        Repetitions with other random orders; each image counts with its mean over them.
    drawn : Resamples
        Of the images' groups, for the intervals of likeness and overlap; none tells how far other random orders
        would be.
    seed : int

    Returns
    -------
    DataFrame with columns shuffled, layer, likeness, and with masks pointing and overlap, each with _low and _high
        How many layers are shuffled, the last of them, the mean rank correlation with the trained network's map,
        and as `measure_places` has them. The first row is the trained network.
    """
    trained = saliency.gradcam(model, layer, batches)
    stops: dict[tuple[int, str], list[dict[str, np.ndarray]]] = {(0, "none"): [_compare(trained, trained, masks)]}
    for shuffle in range(shuffles):
        other = copy.deepcopy(model)
        for stop in shuffle_from_the_last(other, STOPS, seed + shuffle):
            maps = saliency.gradcam(other, layer, batches)
            stops.setdefault(stop, []).append(_compare(maps, trained, masks))
    records = []
    for (count, name), measured in stops.items():
        record: dict[str, float | int | str] = {"shuffled": count, "layer": name}
        for measure in measured[0]:
            values = np.mean([one[measure] for one in measured], axis=0)
            # A share has Wilson's interval: a bootstrap has none of a share that is 0.
            bounded = share(values) if measure == "pointing" else mean_over_groups(values, drawn)
            record |= named(measure, bounded)
        records.append(record)
    return pd.DataFrame(records)


def all_shuffled(falling: pd.DataFrame) -> dict[str, float]:
    """Return the last row of `randomise`'s table as flat metrics, such as ``pointing_shuffled_low``."""
    last, ends = falling.iloc[-1], ("", "_low", "_high")
    names = [name for name in ("likeness", "pointing", "overlap") if name in falling]
    return {f"{name}_shuffled{end}": last[f"{name}{end}"] for name in names for end in ends}


def _compare(maps: np.ndarray, trained: np.ndarray, masks: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return what is measured of each map; the overlap is that at the best threshold for all of them."""
    scores = {"likeness": saliency.likeness(maps, trained)}
    if masks is not None:
        scores["pointing"] = saliency.points_inside(saliency.peaks(maps), masks)
        scores["overlap"], _ = saliency.best_overlaps(saliency.enlarge(maps, masks.shape[1]), masks)
    return scores


def round_scores(scores: dict[str, float | int]) -> dict[str, float | int]:
    """Round what is not a count to four decimals."""
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in scores.items()}


def describe(scores: dict[str, float | int], layer: str) -> str:
    """Say in a line or two what the maps are worth."""
    if "border_share" not in scores:
        return f"Grad-CAM of {layer} is empty: nothing in it speaks for the class that the network predicts"
    border, even = 100 * scores["border_share"], 100 * scores["border_share_even"]
    lines = [f"Grad-CAM of {layer}: {border:.1f}% of its mass in the border, where an even map has {even:.1f}%"]
    if "pointing" in scores:
        values = [100 * scores[f"pointing{name}"] for name in ("", "_low", "_high", "_shuffled", "_centre")]
        lines.append(
            "it points into the tumour in {:.1f}% [{:.1f}, {:.1f}] of {} images, {:.1f}% with shuffled weights, "
            "the image's middle in {:.1f}%".format(*values[:3], scores["located"], *values[3:])
        )
    return "\n".join(lines)
