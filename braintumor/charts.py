"""What a page of HTML shows: charts as SVG in the page's own colours, and images as part of the page."""

import base64
import io

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from braintumor.plots import PALETTE, draw_intervals, draw_reliability, draw_risk

INK = "#010203"  # drawn with, and then replaced by the page's own colour of text, light or dark
LINES = ("-", "--", "-.", ":")


def svg(figure: Figure, description: str) -> Markup:
    """Return a figure as SVG that scales with the page, with a description for those who cannot see it."""
    for axis in figure.axes:
        recolour(axis)
    stream = io.StringIO()
    # Text stays text, in the page's font; the salt makes equal figures equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    body = text[text.index("<svg") :].replace(INK, "currentColor")
    label = Markup.escape(description)
    body = body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return Markup(body)


def recolour(axis: Axes) -> None:
    """Give all that is black on an axis the colour of the page's text."""
    axis.tick_params(colors=INK, which="both")
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts):
        text.set_color(INK)
    for spine in axis.spines.values():
        spine.set_color(INK)
    if legend := axis.get_legend():
        for text in legend.get_texts():
            text.set_color(INK)


def data_uri(image: np.ndarray, quality: int = 82) -> str:
    """Return a grey or RGB image of uint8 as an address that holds the image itself (WebP)."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", quality=quality)
    return file_uri(stream.getvalue(), "webp")


def file_uri(content: bytes, kind: str) -> str:
    """Return the content of an image file as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _panel(width: float = 5.2, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def learning_curves(curves: pd.DataFrame, score: str) -> Markup:
    """Draw a score of training and validation by epoch.

    Parameters
    ----------
    curves : DataFrame with columns epoch, train_<score> and validation_<score>
    score : {"loss", "accuracy"}
    """
    figure, axis = _panel()
    for subset, colour, line in zip(("train", "validation"), PALETTE, LINES, strict=False):
        axis.plot(curves["epoch"], curves[f"{subset}_{score}"], color=colour, linestyle=line, label=subset)
    axis.set(xlabel="epoch", ylabel=score, title=f"{score.capitalize()} by epoch")
    axis.legend(frameon=False)
    last = curves.iloc[-1]
    return svg(
        figure,
        f"{score} by epoch: at the end {last[f'train_{score}']:.3f} in training and "
        f"{last[f'validation_{score}']:.3f} in validation",
    )


def lr_range(curve: pd.DataFrame) -> Markup:
    """Draw the smoothed loss of the learning-rate range test.

    Parameters
    ----------
    curve : DataFrame with columns lr and smoothed_loss
    """
    figure, axis = _panel()
    axis.plot(curve["lr"], curve["smoothed_loss"], color=PALETTE[0])
    axis.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss", title="Learning-rate range test")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda *_: "")
    return svg(figure, "Smoothed loss as the learning rate rises from batch to batch")


def accuracies(table: pd.DataFrame, name: str, title: str) -> Markup:
    """Draw accuracies with their intervals.

    Parameters
    ----------
    table : DataFrame with columns accuracy, low, high and `name`
    name : str
        Column of the labels.
    title : str
    """
    table = table.dropna(subset="accuracy")
    figure, axis = _panel(height=1.2 + 0.42 * len(table))
    draw_intervals(axis, table[name].str.replace("_", " "), table, title)
    said = ", ".join(
        f"{label} {100 * value:.1f}%" for label, value in zip(table[name], table["accuracy"], strict=True)
    )
    return svg(figure, f"{title}: {said}")


def reliability(table: pd.DataFrame) -> Markup:
    """Draw the share that is right against the confidence; see `plots.draw_reliability`."""
    figure, axis = _panel()
    draw_reliability(axis, table)
    return svg(figure, "Reliability diagram, before and after calibration")


def risk(table: pd.DataFrame) -> Markup:
    """Draw risk against coverage; see `plots.draw_risk`."""
    figure, axis = _panel()
    draw_risk(axis, table)
    return svg(figure, f"Risk against coverage: {100 * table['risk'].iloc[-1]:.1f}% wrong among all images")


def class_curves(table: pd.DataFrame, x: str, y: str, title: str, areas: dict[str, float]) -> Markup:
    """Draw one curve per class.

    Parameters
    ----------
    table : DataFrame with columns class, `x` and `y`
    x, y : str
    title : str
    areas : dict
        Area under each class's curve.
    """
    figure, axis = _panel()
    for i, (name, area) in enumerate(areas.items()):
        part = table[table["class"] == name]
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": LINES[i % len(LINES)]}
        axis.plot(part[x], part[y], label=f"{name} {area:.3f}", **style)
    axis.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), title=title, xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    said = ", ".join(f"{name} {area:.3f}" for name, area in areas.items())
    return svg(figure, f"{title}; area: {said}")
