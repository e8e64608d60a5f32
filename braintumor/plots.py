"""Pictures, drawn from tables and arrays; the same input gives the same bytes."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion
from sklearn.metrics import confusion_matrix

from braintumor.files import replacing_file
from braintumor.tables import TESTING, TRAINING

mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
mpl.rcParams["text.parse_math"] = False  # a $ in a file's or a class's name is a $
# Told apart by brightness too, on black and on white; after Okabe and Ito (2008).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b06a94", "#8a7a00", "#5b8fd6", "#7f7f7f")
COLOURS = {TRAINING: "#4269d0", TESTING: "#e07b39"}
MARKERS = {TRAINING: "o", TESTING: "^"}


def save(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG without the version of what drew it."""
    with replacing_file(file) as beside:
        figure.savefig(beside, dpi=110, metadata={"Software": None})


def evenly(n: int, most: int) -> np.ndarray:
    """Choose up to `most` of n positions, evenly spaced from the first to the last."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(int)


def sheet(rows: list[list[tuple[np.ndarray, str]]], title: str, row_titles: list[str] | None = None) -> Figure:
    """Draw rows of grey images, each with a caption.

    Parameters
    ----------
    rows : list of rows, each a list of (grey uint8 image, caption)
    title : str
    row_titles : list of str, one per row, optional
        Written above the first image of each row.
    """
    columns = max(3, *(len(row) for row in rows))  # a title needs its room
    figure = Figure(figsize=(1.6 * columns + 0.2, 2.05 * len(rows) + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(rows):
        for axis, (image, caption) in zip(axes[i], row, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.text(0.5, -0.03, caption, transform=axis.transAxes, ha="center", va="top", fontsize=6.5)
        if row_titles:
            axes[i][0].set_title(row_titles[i], loc="left", fontsize=8)
    return figure


def overlay(image: np.ndarray, saliency: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Lay a map over its image, and the outline of the tumour, if it is known, over both.

    Parameters
    ----------
    image, saliency : ndarray of shape (size, size), uint8
    mask : ndarray of shape (size, size), bool, optional

    Returns
    -------
    ndarray of shape (size, size, 3), uint8
    """
    share = saliency[..., None] / 255
    colours = mpl.colormaps["inferno"](saliency)[..., :3] * 255
    mixed = image[..., None] * (1 - 0.6 * share) + colours * 0.6 * share
    if mask is not None:
        mixed[mask & ~binary_erosion(mask)] = (0, 255, 255)
    return mixed.round().astype(np.uint8)


def overview(table: pd.DataFrame) -> Figure:
    """Draw the images per class and folder, and their widths and heights.

    Parameters
    ----------
    table : DataFrame, the manifest
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    bars, points = figure.subplots(1, 2)
    classes = sorted(table["class"].unique())
    for offset, (folder, colour) in enumerate(COLOURS.items()):
        counts = table["class"][table["folder"] == folder].value_counts().reindex(classes, fill_value=0)
        if counts.sum():
            drawn = bars.bar(np.arange(len(classes)) + 0.4 * offset, counts, 0.38, color=colour, label=folder)
            bars.bar_label(drawn, fontsize=7)
            rows = table[table["folder"] == folder]
            points.scatter(
                rows["width"],
                rows["height"],
                16,
                colour,
                alpha=0.5,
                label=folder,
                marker=MARKERS[folder],
                linewidths=0,
            )
    bars.set(xticks=np.arange(len(classes)) + 0.2, xticklabels=classes, ylabel="images", title="Classes")
    points.set(xlabel="width (pixels)", ylabel="height (pixels)", title="Sizes")
    figure.legend(*bars.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def confusion(actual: pd.Series, predicted: pd.Series) -> Figure:
    """Draw a confusion matrix with counts, coloured by the share of each actual class.

    Parameters
    ----------
    actual, predicted : Series of str
        Class names, one per image.
    """
    classes = sorted(set(actual) | set(predicted))
    counts = confusion_matrix(actual, predicted, labels=classes)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = 2 + 0.8 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(classes))
    axis.set(xticks=ticks, yticks=ticks, xlabel="predicted", ylabel="actual")
    axis.set_xticklabels(classes, rotation=45, ha="right")
    axis.set_yticklabels(classes)
    axis.set_title(f"{np.trace(counts)} of {counts.sum()} test images right")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{count}\n{100 * shares[row, column]:.1f}%"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def evaluation(
    subsets: pd.DataFrame, baselines: pd.DataFrame, reliability: pd.DataFrame, risk: pd.DataFrame
) -> Figure:
    """Draw accuracy on subsets and of baselines, reliability, and risk against coverage.

    Parameters
    ----------
    subsets : DataFrame with columns subset, units, accuracy, low and high
    baselines : DataFrame with columns baseline, accuracy, low and high
    reliability : DataFrame with columns calibration, confidence, accuracy, low and high
    risk : DataFrame with columns coverage and risk
    """
    figure = Figure(figsize=(9.5, 7.5), layout="constrained")
    (left, right), (diagonal, curve) = figure.subplots(2, 2)
    scored = subsets.dropna(subset="accuracy")
    labels = scored["subset"].str.replace("_", " ") + " (" + scored["units"].astype(str) + ")"
    draw_intervals(left, labels, scored, "Accuracy on subsets of the test set")
    names = baselines["baseline"].str.replace("_", " ")
    draw_intervals(right, names, baselines, "Accuracy of the baselines and of the network")
    right.set_xlim(0, 1)
    draw_reliability(diagonal, reliability)
    draw_risk(curve, risk)
    return figure


def draw_intervals(axis: Axes, labels: pd.Series, table: pd.DataFrame, title: str) -> None:
    """Draw accuracies as points with their intervals, one row each, the first on top.

    Parameters
    ----------
    axis : Axes
    labels : Series of str
    table : DataFrame with columns accuracy, low and high
    title : str
    """
    rows = np.arange(len(table))
    sides = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
    axis.errorbar(
        table["accuracy"], rows, xerr=np.clip(sides, 0, None), fmt="o", color=COLOURS[TRAINING], capsize=3
    )
    for row, value in zip(rows, table["accuracy"], strict=True):
        axis.annotate(
            f"{100 * value:.1f}%", (value, row), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    axis.set(yticks=rows, yticklabels=labels, ylim=(len(table) - 0.4, -0.7), xlabel="accuracy", title=title)
    axis.grid(axis="x", linewidth=0.4)


def draw_reliability(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the share that is right against the confidence, before and after calibration.

    Parameters
    ----------
    axis : Axes
    table : DataFrame with columns calibration, confidence, accuracy, low and high
    """
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    for when, colour, marker in zip(("before", "after"), COLOURS.values(), MARKERS.values(), strict=True):
        part = table[table["calibration"] == when]
        sides = np.clip([part["accuracy"] - part["low"], part["high"] - part["accuracy"]], 0, None)
        style = {"fmt": marker, "color": colour, "capsize": 2, "linewidth": 1}
        axis.errorbar(part["confidence"], part["accuracy"], sides, label=f"{when} calibration", **style)
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title="Reliability")
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def draw_risk(axis: Axes, table: pd.DataFrame) -> None:
    """Draw the share that is wrong among the most certain images.

    Parameters
    ----------
    axis : Axes
    table : DataFrame with columns coverage and risk
    """
    axis.plot(table["coverage"], table["risk"], color=COLOURS[TRAINING])
    axis.set(xlabel="coverage: share of images that are answered", ylabel="risk: share of these that are wrong")
    axis.set(xlim=(0, 1), ylim=(0, None), title="Risk against coverage, the most certain first")
