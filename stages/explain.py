"""Show what the network looks at and what it has learnt to see, and measure how far its maps can be believed."""

from pathlib import Path

import numpy as np
import pandas as pd

from braintumor import explanation, figures, plots
from braintumor.batches import Augmentation, Batches
from braintumor.device import choose_device
from braintumor.errors import UserError
from braintumor.files import replacing_file, replacing_folder
from braintumor.intervals import resample_groups
from braintumor.layers import choose_layer, first_images, layer_outputs
from braintumor.params import load_params, pick
from braintumor.regions import find_tumours
from braintumor.saliency import enlarge, gradcam
from braintumor.tables import TEST, TRAIN, read_images, read_table, write_metrics, write_table
from braintumor.weights import Description, load_model
from stages import run


def main(
    raw: Path,
    images: Path,
    split: Path,
    predictions: Path,
    weights: Path,
    description: Path,
    saliency: Path,
    table: Path,
    metrics: Path,
    randomisation: Path,
    pictures: Path,
) -> None:
    params = load_params(Path("params.yaml"))
    explain = params.explain
    device = choose_device(explain.device, explain.threads)
    model, described = load_model(weights, description)
    model.to(device)
    pool = read_table(split)
    array = read_images(images, pool)
    tested = read_tested(predictions, pool)
    targets = tested["prediction"].map(described.classes.index).to_numpy()

    def batches(of: np.ndarray) -> Batches:
        scale = described.mean, described.deviation
        return Batches(array, tested["row"].to_numpy()[of], targets[of], explain.batch_size, *scale, device)

    everyone = np.arange(len(tested))
    layer = choose_layer(layer_outputs(model, first_images(batches(everyone[:1]))), explain.layer)
    maps = gradcam(model, layer, batches(everyone))
    size = described.preprocess["size"]
    located, masks = locate(explain.boxes, raw, tested, described)
    scores = {"images": len(tested), "cells": maps[0].size}
    scores |= explanation.measure_borders(tested, maps, size, explain.border, explain.resamples, explain.seed)
    if masks is not None:
        of_located = tested.iloc[located], maps[located], masks
        scores |= explanation.measure_places(*of_located, explain.resamples, explain.seed)
    some = explanation.draw(len(located), explain.shuffled_images, explain.seed)
    some_masks = None if masks is None else masks[some]
    drawn = resample_groups(tested["group"].to_numpy()[located[some]], explain.resamples, explain.seed)
    falling = explanation.randomise(
        model, layer, batches(located[some]), some_masks, explain.shuffles, drawn, explain.seed
    )
    scores |= explanation.all_shuffled(falling)
    write_metrics(explanation.round_scores(scores), metrics)
    write_table(falling, randomisation)

    chosen = explanation.choose_images(tested, explain.samples, explain.seed)
    explained = explanation.describe_maps(tested.iloc[chosen], maps[chosen], size, explain.border)
    trained = np.flatnonzero(pool["subset"] == TRAIN)
    nearest, explained["nearest_similarity"] = explanation.nearest_images(array, explained["row"], trained)
    explained["nearest"] = pool["path"].to_numpy()[nearest]
    shown = np.rint(enlarge(maps[chosen], size) * 255).astype(np.uint8)
    write_table(explained, table)
    with replacing_file(saliency) as beside:
        np.save(beside, shown)
    known = {} if masks is None else dict(zip(tested["row"].iloc[located], masks, strict=True))
    with replacing_folder(pictures) as folder:
        for name, figure in figures.map_sheets(explained, array, shown, known):
            plots.save(figure, folder / f"{name}.png")
        plots.save(figures.randomisation(falling, scores), folder / "randomisation.png")
        for name, figure in figures.network_sheets(model, tested, array, batches):
            plots.save(figure, folder / f"{name}.png")
        augmentation, dropout = pick(Augmentation, params.train), params.train.dropout
        of_training = pool.iloc[trained], trained, array, augmentation, dropout, explain.seed
        for name, figure in figures.training_sheets(*of_training):
            plots.save(figure, folder / f"{name}.png")
    print(explanation.describe(scores, layer))


def read_tested(predictions: Path, pool: pd.DataFrame) -> pd.DataFrame:
    """Read the predictions, after a check that they are the split's, and add the rows of the images."""
    tested = read_table(predictions)
    rows = np.flatnonzero(pool["subset"] == TEST)
    if tested["path"].tolist() != pool["path"].iloc[rows].tolist():
        raise UserError(f"{predictions} is not of the test images of the split: run the stage evaluate")
    return tested.assign(row=rows)


def locate(
    boxes: str | None, raw: Path, tested: pd.DataFrame, described: Description
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the positions of the test images whose tumours are known and their masks; without boxes, of all."""
    if not boxes:
        return np.arange(len(tested)), None
    size, crop, fit = (described.preprocess[name] for name in ("size", "crop", "fit"))
    return find_tumours(Path(boxes).expanduser(), raw, tested["path"].tolist(), size, crop, fit == "letterbox")


if __name__ == "__main__":
    run(main)
