"""Pictures that explain a network: its maps over the images, layers, filters, and what it was trained with."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from matplotlib.figure import Figure
from torch import Tensor, nn

from braintumor.batches import Augmentation, Batches
from braintumor.layers import first_images, layer_outputs, weighted_layers
from braintumor.plots import evenly, overlay, sheet

SHOWN = 64  # images of a sheet, at most
LAYERS = 40  # rows of a sheet of layers, at most
SEEDS_DROPOUTS = (0.1, 0.3, 0.5, 0.9)


def map_sheets(
    table: pd.DataFrame, images: np.ndarray, maps: np.ndarray, masks: dict[int, np.ndarray]
) -> Iterator[tuple[str, Figure]]:
    """Draw the maps of the wrong images and, one row per class, those of right ones.

    Parameters
    ----------
    table : DataFrame with columns path, class, prediction, right and row
        As the stage explain writes it.
    images : ndarray of shape (N, size, size), uint8
    maps : ndarray of shape (len(table), size, size), uint8
    masks : dict of int to ndarray of shape (size, size), bool
        Tumours that are known, by the row of `images`.

    Yields
    ------
    name, figure
    """

    def show(i: int) -> tuple[np.ndarray, str]:
        row = table.iloc[i]
        name = row["path"].rsplit("/", 1)[1]
        caption = f"{name}\n{row['class']}" + ("" if row["right"] else f"\ntaken for {row['prediction']}")
        return overlay(images[row["row"]], maps[i], masks.get(row["row"])), caption

    outlined = "; outlined: the tumour" if masks else ""
    wrong = np.flatnonzero(~table["right"])
    shown = wrong[evenly(len(wrong), SHOWN)]
    if len(wrong):
        part = f"{len(shown)} of " if len(shown) < len(wrong) else ""
        title = f"What speaks for the wrong class: {part}{len(wrong)} wrong images{outlined}"
        yield (
            "gradcam_errors",
            sheet([[show(i) for i in shown[k : k + 8]] for k in range(0, len(shown), 8)], title),
        )
    right = [np.flatnonzero(table["right"] & (table["class"] == name)) for name in sorted(table["class"].unique())]
    rows = [[show(i) for i in members[evenly(len(members), 8)]] for members in right if len(members)]
    if rows:
        yield "gradcam_right", sheet(rows, f"What speaks for the right class{outlined}")


def layer_sheet(title: str, image: np.ndarray, model: nn.Module, outputs: dict[str, Tensor]) -> Figure:
    """Draw what each layer makes of one image, in strips from black, its smallest value, to white.

    Of a convolution these are the eight channels that vary most, each in its own range; of a linear
    layer its values.

    Parameters
    ----------
    title : str
    image : ndarray of shape (size, size), uint8
    model : nn.Module
    outputs : dict of str to Tensor of shape (1, channels, h, w) or (1, features)
        From `layers.layer_outputs`. Of very many layers, evenly spaced ones are drawn.
    """
    weighted = weighted_layers(model)
    # Of a transformer's linear layers the outputs are tokens, which are no picture.
    names = [
        name
        for name, output in outputs.items()
        if name in weighted and output.ndim == (4 if isinstance(weighted[name][0], nn.Conv2d) else 2)
    ]
    strips = [("the image", [image])]
    for name in (names[i] for i in evenly(len(names), LAYERS)):
        channels = outputs[name][0].float().cpu().numpy()
        if channels.ndim == 1:
            strips.append((f"{name}: {len(channels)} values", [_stretch(channels[None])]))
            continue
        strongest = np.sort(np.argsort(-channels.std(axis=(1, 2)), kind="stable")[:8])
        shape, numbers = " x ".join(map(str, channels.shape)), ", ".join(map(str, strongest))
        strips.append((f"{name}: {shape}, channels {numbers}", [_stretch(channels[i]) for i in strongest]))
    figure = Figure(figsize=(8.2, 1.25 * len(strips) + 0.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    for axis, (name, tiles) in zip(figure.subplots(len(strips), 1), strips, strict=True):
        # One axis a layer, since one for each of a hundred tiles takes matplotlib seconds.
        rows, columns = tiles[0].shape
        width, height = (1, rows / columns) if rows > 1 else (8.4, 1)  # values lie in one row of the whole width
        for i, tile in enumerate(tiles):
            axis.imshow(tile, cmap="gray", vmin=0, vmax=255, extent=(1.05 * i, 1.05 * i + width, 0, height))
        axis.set(xlim=(0, 8.4), ylim=(0, height))
        axis.set_title(name, loc="left", fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(rows == 1)  # the largest value is white, on white
    return figure


def filters(model: nn.Module) -> Figure:
    """Draw the filters of a network's first convolution: grey is 0, black and white the largest weight.

    Of several input channels, which all get the same grey image, the sum counts.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    filters = first.weight.detach().sum(1).float().cpu().numpy()
    shown = filters[:SHOWN]
    scaled = (127.5 + 127.5 * shown / max(np.abs(filters).max(), 1e-12)).round().astype(np.uint8)
    tiles = [(image, f"filter {i}") for i, image in enumerate(scaled)]
    title = f"The first layer's {len(filters)} filters" + (f", {SHOWN} of them" if len(filters) > SHOWN else "")
    return sheet([tiles[i : i + 8] for i in range(0, len(tiles), 8)], title)


def randomisation(table: pd.DataFrame, scores: dict[str, float | int]) -> Figure:
    """Draw how the maps fall as more and more layers are shuffled, with 95% intervals.

    Parameters
    ----------
    table : DataFrame
        From `explanation.randomise`.
    scores : dict
        From `explanation.measure_places`: its ``tumour_area`` is drawn as the level of chance.
    """
    names = {"likeness": "likeness to the trained map", "pointing": "pointing game", "overlap": "overlap"}
    drawn = [name for name in names if name in table]
    figure = Figure(figsize=(1 + 3.6 * len(drawn), 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        axis.plot(table["shuffled"], table[name], "o-", markersize=4, color="#4269d0")
        axis.fill_between(
            table["shuffled"], table[f"{name}_low"], table[f"{name}_high"], alpha=0.2, linewidth=0, color="#4269d0"
        )
        axis.axhline(0 if name == "likeness" else scores["tumour_area"], color="grey", linewidth=1, linestyle=":")
        axis.set(
            xlabel="layers shuffled, from the last", title=names[name], ylim=(min(0, *table[f"{name}_low"]), None)
        )
    return figure


def dropout_sums(p: float, seed: int) -> Figure:
    """Draw how the sum of eleven values, 0.1 to 1.1, is distributed under dropout of several p, the one set too.

    The mean stays 6.6, the spread grows with p; without dropout there is one bar.
    """
    values = torch.arange(1, 12).repeat(1000, 1) / 10
    ps = sorted({*SEEDS_DROPOUTS, p})
    figure = Figure(figsize=(7, 1.3 * len(ps) + 0.5), layout="constrained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for axis, each in zip(figure.subplots(len(ps), 1, sharex=True), ps, strict=True):
            sums = F.dropout(values, each).sum(1).numpy()
            axis.hist(sums, np.arange(0, sums.max() + 0.5, 0.5), color="#e07b39" if each == p else "#4269d0")
            title = f"p = {each:g}{', the one set' if each == p else ''}: mean {sums.mean():.2f}"
            axis.set(title=f"{title}, deviation {sums.std():.2f}", yticks=[], xlim=(0, 30))
    axis.set_xlabel("sum of the eleven values")
    return figure


def dropout_image(image: np.ndarray, p: float, seed: int) -> Figure:
    """Draw an image, as three equal channels, under dropout of pixels and of whole channels (2-D dropout).

    Parameters
    ----------
    image : ndarray of shape (size, size), uint8
    p : float
    seed : int
    """
    channels = torch.from_numpy(image.copy()).float().expand(1, 3, *image.shape)
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for drop in (F.dropout, F.dropout2d):
            drawn = [drop(channels, p)[0].clamp(0, 255).permute(1, 2, 0).byte().numpy() for _ in range(5)]
            rows.append([(image, "the image"), *((each, "") for each in drawn)])
    titles = [f"dropout, p = {p:g}: pixels of each channel", f"2-D dropout, p = {p:g}: whole channels"]
    return sheet(rows, "An image of three channels under dropout, five times", titles)


def augmentation_sheet(images: np.ndarray, rows: dict[str, int], augmentation: Augmentation, seed: int) -> Figure:
    """Draw training images as they are and seven times as augmentation changes them.

    Parameters
    ----------
    images : ndarray of shape (N, size, size), uint8
    rows : dict of str to int
        One row of `images` for each name.
    augmentation : Augmentation
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    sheets = []
    for row in rows.values():
        repeated = torch.from_numpy(images[row].copy()).float().repeat(7, 1, 1, 1)
        changed = augmentation(repeated, augmentation.draw(7, generator), 0, 1)[:, 0] * 255
        sheets.append([(images[row], "before"), *((image, "") for image in changed.round().byte().numpy())])
    return sheet(sheets, "Training images before and after augmentation", list(rows))


def network_sheets(
    model: nn.Module, tested: pd.DataFrame, images: np.ndarray, batches: Callable[[np.ndarray], Batches]
) -> Iterator[tuple[str, Figure]]:
    """Draw the first filters, and what each layer makes of one test image per class, a right one if any is.

    Parameters
    ----------
    model : nn.Module
    tested : DataFrame with columns path, class, prediction and row
    images : ndarray of shape (N, size, size), uint8
    batches : callable
        From positions in `tested` to batches of their images.

    Yields
    ------
    name, figure
    """
    yield "filters", filters(model)
    right = (tested["class"] == tested["prediction"]).to_numpy()
    for name in sorted(tested["class"].unique()):
        members = np.flatnonzero(tested["class"] == name)
        one = members[right[members].argmax()]
        outputs = layer_outputs(model, first_images(batches(np.array([one]))))
        title = f"What each layer makes of {tested['path'].iloc[one]}"
        yield f"layers_{name}", layer_sheet(title, images[tested["row"].iloc[one]], model, outputs)


def training_sheets(
    trained: pd.DataFrame,
    rows: np.ndarray,
    images: np.ndarray,
    augmentation: Augmentation,
    dropout: float,
    seed: int,
) -> Iterator[tuple[str, Figure]]:
    """Draw what augmentation and dropout do while training, on the first training image of each class.

    Parameters
    ----------
    trained : DataFrame with column class
    rows : ndarray of shape (len(trained),), int
        Of `images`.
    images : ndarray of shape (N, size, size), uint8
    augmentation : Augmentation
    dropout : float
        The probability that is set; the image is drawn under a half where it is 0.
    seed : int

    Yields
    ------
    name, figure
    """
    first = {name: int(rows[(trained["class"] == name).argmax()]) for name in sorted(trained["class"].unique())}
    yield "augmentation", augmentation_sheet(images, first, augmentation, seed)
    yield "dropout_sums", dropout_sums(dropout, seed)
    # Without any there would be nothing to see of the image.
    yield "dropout_image", dropout_image(images[min(first.values())], dropout or 0.5, seed)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Stretch from the smallest to the largest value, to uint8."""
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)
