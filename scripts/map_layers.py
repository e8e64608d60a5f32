"""Compare the layers that Grad-CAM can be made of, on validation images whose tumours are known.

    python -m scripts.map_layers BOXES

Needs a finished `dvc repro`; BOXES is what `explain.boxes` takes. Fills a table of docs/explanation.md.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from braintumor import explanation, saliency
from braintumor.batches import Batches
from braintumor.layers import choose_layer, first_images, layer_outputs, shuffle_from_the_last, weighted_layers
from braintumor.pages import fill_file, table
from braintumor.params import load_params
from braintumor.regions import find_tumours
from braintumor.results import number_with_interval, with_interval
from braintumor.tables import VALIDATION, read_images, read_table
from braintumor.training import predict
from braintumor.weights import load_model
from scripts import PROJECT, run_script

PAGE = PROJECT / "docs/explanation.md"
BLOCKS = 5  # the last ones are compared
SHUFFLED = 6  # layers: the head and the last two blocks of the default network


def shuffled_pointing(
    model: nn.Module, layers: list[str], batches: Batches, masks: np.ndarray, seed: int
) -> dict[str, float]:
    """Return each layer's pointing game once the last layers are shuffled."""
    other = copy.deepcopy(model)
    next(step for step in shuffle_from_the_last(other, len(weighted_layers(model)), seed) if step[0] == SHUFFLED)
    return {
        layer: saliency.points_inside(saliency.peaks(saliency.gradcam(other, layer, batches)), masks).mean()
        for layer in layers
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m scripts.map_layers BOXES")
    params = load_params(PROJECT / "params.yaml")
    torch.set_num_threads(params.explain.threads)
    folder = PROJECT / "models"
    model, described = load_model(folder / "model.safetensors", folder / "model.json")
    pool = read_table(PROJECT / "data/split.csv")
    array = read_images(PROJECT / "data/images.npy", pool)
    rows = np.flatnonzero(pool["subset"] == VALIDATION)
    size, crop, fit = (described.preprocess[name] for name in ("size", "crop", "fit"))
    paths = pool["path"].iloc[rows].tolist()
    known, masks = find_tumours(Path(sys.argv[1]), PROJECT / "data/raw", paths, size, crop, fit == "letterbox")
    rows = rows[known]
    scale, cpu = (described.mean, described.deviation), torch.device("cpu")
    labels = np.zeros(len(rows), np.int64)
    labels = predict(model, Batches(array, rows, labels, 64, *scale, cpu)).argmax(1).numpy()
    batches = Batches(array, rows, labels, 64, *scale, cpu)
    tested = pool.iloc[rows].assign(prediction=[described.classes[label] for label in labels])

    outputs = layer_outputs(model, first_images(batches))
    auto = choose_layer(outputs, "auto")
    layers = [name for name in outputs if name.startswith("blocks.") and name.count(".") == 1][-BLOCKS:]
    seeds = range(params.explain.seed, params.explain.seed + params.explain.shuffles)
    shuffled = [shuffled_pointing(model, layers, batches, masks, seed) for seed in seeds]
    lines = []
    for layer in layers:
        maps = saliency.gradcam(model, layer, batches)
        drawn = params.explain.resamples, params.explain.seed
        places = explanation.measure_places(tested, maps, masks, *drawn)
        borders = explanation.measure_borders(tested, maps, size, params.explain.border, *drawn)
        fallen = [100 * scores[layer] for scores in shuffled]
        lines.append(
            [
                f"`{layer}`{' (taken by `auto`)' if torch.equal(outputs[layer], outputs[auto]) else ''}",
                " x ".join(map(str, maps.shape[1:])),
                with_interval(places, "pointing"),
                number_with_interval(places, "overlap"),
                with_interval(borders, "border_share"),
                f"{min(fallen):.1f} to {max(fallen):.1f}%",
            ]
        )
    dot = with_interval(places, "pointing_centre"), number_with_interval(places, "overlap_centre")
    lines.append(["*a dot, a disc in the middle*", "", *dot, "", ""])
    text = table(["layer", "cells", "pointing game", "overlap", "border share", "pointing, shuffled"], lines)
    text += f"\n\n{len(rows)} validation images with a tumour that is known."
    print(text)
    fill_file(PAGE, {"map-layers": text})


if __name__ == "__main__":
    run_script(main)
