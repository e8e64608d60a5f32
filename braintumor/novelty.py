"""Telling images that are unlike the training images: fitting the distance, and images to measure it on."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import cholesky
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from braintumor.deployed import Novelty
from braintumor.images import load_squares
from braintumor.intervals import named, percentile_interval, resample_groups, share
from braintumor.phantom import make_phantom
from braintumor.ranking import weighted_areas
from braintumor.tables import list_images

COMPONENTS = 256  # of wider features only their principal components count


def fit_novelty(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, flagged: float) -> Novelty:
    """Fit the Mahalanobis distance from the nearest class (Lee et al. 2018, arXiv:1807.03888).

    The features are standardised first; the classes share one covariance, shrunk as Ledoit and Wolf (2004) say,
    so that it can be inverted with fewer images than features.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Of training images, from `braintumor.deployed.Describer`.
    labels : ndarray of shape (n,), int
        Their classes, from 0.
    held_out : ndarray of shape (m, d)
        Features of validation images.
    flagged : float
        Share of the validation images that the limit lets be flagged, 0 to 1.
    """
    scaler = StandardScaler().fit(features)
    basis = np.diag(1 / scaler.scale_)
    if features.shape[1] > COMPONENTS:
        count = min(COMPONENTS, len(features) - 1)
        pca = PCA(count, svd_solver="covariance_eigh").fit(scaler.transform(features))
        basis = basis @ pca.components_.T
    projected = (features - scaler.mean_) @ basis
    means = np.stack([projected[labels == label].mean(0) for label in range(labels.max() + 1)])
    precision = LedoitWolf(assume_centered=True).fit(projected - means[labels]).precision_
    whitening = cholesky(precision, lower=True)
    parts = scaler.mean_, basis @ whitening, means @ whitening, np.array(1.0)
    novelty = Novelty(*(torch.tensor(part, dtype=torch.float32) for part in parts))
    novelty.limit.fill_(np.quantile(novelty(torch.tensor(held_out)).numpy(), 1 - flagged))
    return novelty


def shuffled_blocks(squares: np.ndarray, seed: int, blocks: int = 4) -> np.ndarray:
    """Cut images into blocks and put them together in random order: the same parts, but no head.

    Parameters
    ----------
    squares : ndarray of shape (n, size, size), uint8
    seed : int
    blocks : int
        Along each side; what does not fill one stays where it is.
    """
    rng = np.random.default_rng(seed)
    shuffled = squares.copy()
    side = squares.shape[1] // blocks
    for image, result in zip(squares, shuffled, strict=True):
        for place, source in enumerate(rng.permutation(blocks**2)):
            (top, left), (y, x) = (np.array(divmod(cell, blocks)) * side for cell in (place, source))
            result[top : top + side, left : left + side] = image[y : y + side, x : x + side]
    return shuffled


def noise_squares(n: int, size: int, mean: float, deviation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of nothing, five kinds in turn: each pixel by lot, or none.

    Uniform; normal with the training images' mean and deviation (0 to 1); dark, as the air around a head is
    (Rayleigh); uniform in a disc on black, as large as a head; the same grey everywhere, from black to white.

    Returns
    -------
    squares : ndarray of shape (n, size, size), uint8
    groups : ndarray of shape (n,), str
        One of its own for each.
    """
    rng = np.random.default_rng(seed)
    places = (np.arange(size) + 0.5) / size - 0.5
    disc = np.hypot(places, places[:, None]) < 0.4
    shape, greys = (size, size), iter(np.linspace(0, 1, max(1, n // 5)))
    draw = (
        lambda: rng.random(shape),
        lambda: rng.normal(mean, deviation, shape),
        lambda: rng.rayleigh(0.02, shape),
        lambda: rng.random(shape) * disc,
        lambda: np.full(shape, next(greys)),
    )
    squares = np.stack([draw[i % len(draw)]() for i in range(n)])
    return np.rint(squares.clip(0, 1) * 255).astype(np.uint8), np.array([f"noise {i}" for i in range(n)])


def phantom_squares(
    patients: int, size: int, crop: bool, letterbox: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw made-up heads and preprocess them as given; see `braintumor.phantom` and `braintumor.images`.

    Returns
    -------
    squares : ndarray of shape (n, size, size), uint8
    groups : ndarray of shape (n,), str
        The made-up patient of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw, target = Path(folder) / "raw", Path(folder) / "images.npy"
        make_phantom(raw, patients, seed)
        paths = list_images(raw)
        load_squares([raw / path for path in paths], target, size, crop, letterbox, workers=1)
        return np.load(target), np.array([Path(path).stem.split("_")[0] for path in paths])


def told_apart(
    known: np.ndarray, groups: np.ndarray, new: np.ndarray, new_groups: np.ndarray, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Return the area under the ROC curve of new images against known ones, with its 95% interval.

    Parameters
    ----------
    known, new : ndarrays of shape (n,) and (m,)
        Novelty of the images.
    groups, new_groups : ndarrays of shape (n,) and (m,)
        What is drawn together for the interval; a name in both is one group.
    resamples, seed : int
    """
    truth = np.repeat([False, True], [len(known), len(new)])
    values = np.concatenate([known, new])
    drawn = resample_groups(np.concatenate([groups, new_groups]), resamples, seed)
    area = weighted_areas(truth, values, np.ones((1, len(values))))[0][0]
    areas = np.concatenate([weighted_areas(truth, values, weights)[0] for weights in drawn.weights()])
    return (float(area), *percentile_interval(areas))


def score_novelty(
    known: np.ndarray,
    groups: np.ndarray,
    new: dict[str, tuple[np.ndarray, np.ndarray]],
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """Say how well novelty tells other images from test images, as flat metrics.

    Parameters
    ----------
    known : ndarray of shape (n,)
        Novelty of the test images.
    groups : ndarray of shape (n,)
        Groups of the test images, such as patients.
    new : dict of str to two ndarrays
        Novelty of other images and their groups, by their kind.
    resamples, seed : int
        Of the intervals of the areas, which are drawn over groups.

    Returns
    -------
    dict
        For each kind the area under the ROC curve against the test images, and the share that is flagged, with 95%
        intervals.
    """
    scores = named("novelty_flagged_test", share(known > 1))
    for kind, (values, own) in new.items():
        scores |= named(f"novelty_auroc_{kind}", told_apart(known, groups, values, own, resamples, seed))
        scores |= named(f"novelty_flagged_{kind}", share(values > 1))
    return scores
