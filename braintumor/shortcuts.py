"""Baselines that see no anatomy: what a network has to beat before its score says anything about tumours.

All but the network's own are random forests (Breiman 2001) on a few features of the training
images. The idea is the 'Clever Hans' check of
Lapuschkin et al. (2019, doi 10.1038/s41467-019-08987-4): what predicts the class without the lesion is a shortcut.
"""

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

from braintumor.intervals import named, share
from braintumor.views import border_width

CELLS = 32  # the border's pixels are means of the cells of a 32 x 32 grid
DESCRIPTIONS = {
    "majority": "always the class that most training images have",
    "size": "width, height and mode of the file",
    "intensity": "grey values of the whole image, without their places",
    "border": "the image's border, without its centre",
    "network_border": "the network itself, on images whose centre is masked",
    "network": "the network",
}


def size_features(manifest: pd.DataFrame) -> np.ndarray:
    """Return width, height, their ratio and each mode's indicator: shape (n, 3 + modes)."""
    shape = manifest[["width", "height"]].to_numpy(np.float64)
    modes = pd.get_dummies(manifest["mode"]).to_numpy(np.float64)
    return np.column_stack([shape, shape[:, 0] / shape[:, 1], modes])


def intensity_features(images: np.ndarray) -> np.ndarray:
    """Return mean, deviation and the shares of 16 ranges of grey values: shape (n, 18).

    Parameters
    ----------
    images : ndarray of shape (n, size, size), uint8
        Gone through one by one, so it may be mapped from a file.
    """
    rows = []
    for image in images:
        counts = np.bincount(image.ravel(), minlength=256)
        rows.append([image.mean(), image.std(), *(counts.reshape(16, 16).sum(1) / image.size)])
    return np.array(rows)


def border_features(images: np.ndarray, border: float) -> np.ndarray:
    """Return the grey values of the border, averaged over cells of a 32 x 32 grid, or by pixel if they are fewer.

    Parameters
    ----------
    images : ndarray of shape (n, size, size), uint8
        Gone through one by one, so it may be mapped from a file.
    border : float
        Its width on each side, as a share of the image's. What lies further inside counts in no cell.

    Returns
    -------
    ndarray of shape (n, cells)
    """
    size = images.shape[1]
    width = border_width(size, border)
    inside = slice(width, size - width)
    mask = np.ones((size, size))
    mask[inside, inside] = 0
    starts = np.unique(np.linspace(0, size, min(size, CELLS), endpoint=False).astype(int))

    def cells(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, starts, axis=-2), starts, axis=-1)

    counted = cells(mask)
    seen = counted > 0
    return np.stack([cells(image * mask)[seen] for image in images]) / counted[seen]


def predict_shortcuts(
    manifest: pd.DataFrame,
    images: np.ndarray,
    trained: np.ndarray,
    tested: np.ndarray,
    border: float,
    seed: int,
    workers: int,
) -> dict[str, np.ndarray]:
    """Fit each baseline on the training rows and predict the test rows.

    Parameters
    ----------
    manifest : DataFrame with columns class, width, height and mode
    images : ndarray of shape (len(manifest), size, size), uint8
    trained, tested : ndarray of int
        Rows.
    border : float
        See `border_features`.
    seed : int
    workers : int
        Threads; the predictions do not depend on them.

    Returns
    -------
    dict of name to ndarray of shape (len(tested),), str
        majority, size, intensity and border, as in `DESCRIPTIONS`.
    """
    labels = manifest["class"].to_numpy(object)[trained]
    names, counts = np.unique(labels.astype(str), return_counts=True)
    features = {
        "size": size_features(manifest),
        "intensity": intensity_features(images),
        "border": border_features(images, border),
    }
    predicted = {"majority": np.full(len(tested), names[counts.argmax()], object)}
    for name, values in features.items():
        forest = RandomForestClassifier(100, min_samples_leaf=2, n_jobs=workers, random_state=seed)
        predicted[name] = forest.fit(values[trained], labels).predict(values[tested])
    return predicted


def score_shortcuts(actual: np.ndarray, predicted: dict[str, np.ndarray], negative: str | None) -> pd.DataFrame:
    """Score baselines and the network side by side.

    Parameters
    ----------
    actual : ndarray of shape (n,), str
    predicted : dict of name, as in `DESCRIPTIONS`, to ndarray of shape (n,), str
    negative : str or None
        The class without a tumour: adds how much of the question tumour or none is answered.

    Returns
    -------
    DataFrame with columns baseline, description, accuracy, low and high
        And with `negative` detection, detection_low and detection_high: the share of images that are rightly
        called a tumour or none. Intervals are Wilson's.
    """
    rows = []
    for name, values in predicted.items():
        right = values == actual
        row = {"baseline": name, "description": DESCRIPTIONS[name]}
        row |= dict(zip(("accuracy", "low", "high"), share(right), strict=True))
        if negative is not None:
            called = (values == negative) == (actual == negative)
            row |= dict(zip(("detection", "detection_low", "detection_high"), share(called), strict=True))
        rows.append(row)
    return pd.DataFrame(rows).round(4)


def baseline_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Turn the table of `score_shortcuts` into flat metrics, such as ``accuracy_size`` and ``detection_size``."""
    scores = {}
    for row in table.to_dict("records"):
        scores |= named(f"accuracy_{row['baseline']}", (row["accuracy"], row["low"], row["high"]))
        if "detection" in row:
            bounds = row["detection"], row["detection_low"], row["detection_high"]
            scores |= named(f"detection_{row['baseline']}", bounds)
    return scores
