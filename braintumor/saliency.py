"""Maps of where a network looks, and measures of how right they are."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from captum.attr import LayerGradCam
from scipy.stats import rankdata
from torch import nn

from braintumor.batches import Batches
from braintumor.views import border_width

THRESHOLDS = np.arange(1, 20) / 20  # of a map whose largest value is 1


def gradcam(model: nn.Module, layer: str, batches: Batches) -> np.ndarray:
    """Say where a layer speaks for each image's label: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391).

    Parameters
    ----------
    model : nn.Module
        Is set to evaluation.
    layer : str
        Path of a module with an output of shape (n, channels, h, w).
    batches : Batches
        Their labels are the classes to explain.

    Returns
    -------
    ndarray of shape (n, h, w), float32
        0 or more; all zeros where nothing in the layer speaks for the class.
    """
    method = LayerGradCam(model.eval(), model.get_submodule(layer))
    maps = [
        method.attribute(images, target=labels, relu_attributions=True).detach().squeeze(1).float().cpu()
        for images, labels in batches.in_order()
    ]
    return torch.cat(maps).numpy()


def enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Stretch maps over the image, bilinearly, and scale each to a largest value of 1.

    Parameters
    ----------
    maps : ndarray of shape (n, h, w), float32, 0 or more
    size : int
        Side of the image, in pixels.

    Returns
    -------
    ndarray of shape (n, size, size), float32
        0 to 1; a map of zeros stays one.
    """
    large = F.interpolate(torch.from_numpy(maps)[:, None], (size, size), mode="bilinear")[:, 0].numpy()
    return large / np.maximum(large.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)


def peaks(maps: np.ndarray) -> np.ndarray:
    """Return the place of each map's largest value: the middle of its cell, the first of equal ones.

    Parameters
    ----------
    maps : ndarray of shape (n, h, w)
        As the layer has them: enlarged ones have plateaus along the edges.

    Returns
    -------
    ndarray of shape (n, 2), float64
        x and y as fractions of the image's sides; NaN for a map of zeros.
    """
    n, rows, columns = maps.shape
    row, column = np.divmod(maps.reshape(n, -1).argmax(axis=1), columns)
    places = np.column_stack([(column + 0.5) / columns, (row + 0.5) / rows])
    return np.where(maps.any(axis=(1, 2))[:, None], places, np.nan)


def points_inside(places: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Say which places lie inside their mask: the pointing game (Zhang et al. 2016, arXiv:1608.00507).

    Parameters
    ----------
    places : ndarray of shape (n, 2)
        From `peaks`; NaN lies nowhere.
    masks : ndarray of shape (n, size, size), bool

    Returns
    -------
    ndarray of shape (n,), bool
    """
    size = masks.shape[1]
    known = ~np.isnan(places[:, 0])
    column, row = np.minimum(np.nan_to_num(places) * size, size - 1).astype(int).T
    return known & masks[np.arange(len(masks)), row, column]


def overlaps(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each mask and of what of its map passes each threshold.

    Parameters
    ----------
    maps : ndarray of shape (n, size, size), float32
        From `enlarge`.
    masks : ndarray of shape (n, size, size), bool
        None is empty.

    Returns
    -------
    ndarray of shape (n, 19), float64
        0 to 1, for each of `THRESHOLDS`.
    """
    columns = []
    for threshold in THRESHOLDS.astype(np.float32):
        passing = maps >= threshold
        both = (passing & masks).sum(axis=(1, 2))
        columns.append(both / (passing.sum(axis=(1, 2)) + masks.sum(axis=(1, 2)) - both))
    return np.stack(columns, axis=1)


def best_overlaps(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the `overlaps` at the one of `THRESHOLDS` that makes their mean largest, and that threshold.

    Parameters
    ----------
    maps, masks
        See `overlaps`.

    Returns
    -------
    best : ndarray of shape (n,), float64
        0 to 1.
    threshold : float
        0 to 1, the same for all images.
    """
    every = overlaps(maps, masks)
    best = every.mean(axis=0).argmax()
    return every[:, best], float(THRESHOLDS[best])


def border_shares(maps: np.ndarray, width: float) -> np.ndarray:
    """Return how much of each map's mass lies near the image's edges.

    Parameters
    ----------
    maps : ndarray of shape (n, size, size), float32, 0 or more
    width : float
        Of the border, as a share of the image's side: 0.1 makes a frame that has 36% of the image's area.

    Returns
    -------
    ndarray of shape (n,), float64
        0 to 1; NaN for a map of zeros.
    """
    size = maps.shape[1]
    edge = border_width(size, width)
    whole = maps.sum(axis=(1, 2), dtype=np.float64)
    inner = maps[:, edge : size - edge, edge : size - edge].sum(axis=(1, 2), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (whole - inner) / whole


def likeness(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the rank correlation (Spearman's) of each map with the other of the same image.

    Parameters
    ----------
    maps, others : ndarray of shape (n, h, w)

    Returns
    -------
    ndarray of shape (n,), float64
        -1 to 1; 0 where one of the two is the same everywhere.
    """
    ranks = [rankdata(array.reshape(len(array), -1), axis=1) for array in (maps, others)]
    ranks = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = np.linalg.norm(ranks[0], axis=1) * np.linalg.norm(ranks[1], axis=1)
    return np.where(norms > 0, (ranks[0] * ranks[1]).sum(axis=1) / np.where(norms > 0, norms, 1), 0)
