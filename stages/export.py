"""Write the model as one ONNX file, and what tells images that are unlike the training images; measure both."""

from pathlib import Path

import numpy as np
import torch

from braintumor.calibration import load_temperature
from braintumor.deployed import Describer, Inference, run_batches, save_novelty
from braintumor.errors import UserError
from braintumor.export import save_onnx
from braintumor.novelty import fit_novelty, noise_squares, phantom_squares, score_novelty, shuffled_blocks
from braintumor.params import load_params
from braintumor.predictor import load_onnx
from braintumor.tables import TEST, TRAIN, VALIDATION, read_images, read_table, write_metrics
from braintumor.weights import load_model
from stages import run

TOLERANCE = 1e-4  # between torch's outputs and those of the ONNX file


def main(
    images: Path,
    split: Path,
    weights: Path,
    description: Path,
    calibration: Path,
    novelty: Path,
    onnx: Path,
    metrics: Path,
) -> None:
    params = load_params(Path("params.yaml")).export
    torch.set_num_threads(params.threads)
    model, described = load_model(weights, description)
    table = read_table(split)
    array = read_images(images, table)
    describer = Describer(model, described.mean, described.deviation, len(described.classes))
    rows = {subset: np.flatnonzero(table["subset"] == subset) for subset in (TRAIN, VALIDATION, TEST)}
    features = {
        subset: run_batches(describer, array[rows[subset]], params.batch_size)[1] for subset in (TRAIN, VALIDATION)
    }
    labels = table["class"].iloc[rows[TRAIN]].map(described.classes.index).to_numpy()
    fitted = fit_novelty(features[TRAIN], labels, features[VALIDATION], params.flagged)
    save_novelty(fitted, weights, novelty)
    inference = Inference(describer, fitted)
    size = array.shape[1]
    save_onnx(inference, size, described.classes, described.preprocess, load_temperature(calibration), onnx)

    tested = array[rows[TEST]]
    exported = load_onnx(onnx, params.threads)
    logits, known = run_batches(inference, tested, params.batch_size)
    parts = [exported.run(tested[i : i + params.batch_size]) for i in range(0, len(tested), params.batch_size)]
    others = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    # Of outputs over 1 the share counts: no float32 is exact to 1e-4 in a thousand.
    differences = (
        np.abs((other - own) / np.maximum(1, np.abs(own))).max()
        for other, own in zip(others, (logits, known), strict=True)
    )
    difference = float(max(differences))
    if difference > TOLERANCE:
        raise UserError(f"{onnx}: its outputs differ from torch's by {difference:.2g}, more than {TOLERANCE:g}")
    preprocess = described.preprocess
    groups = table["group"].to_numpy()[rows[TEST]]
    new = {
        "shuffled": (shuffled_blocks(tested, params.seed), groups),
        "noise": noise_squares(len(tested), size, described.mean, described.deviation, params.seed),
        "phantoms": phantom_squares(
            params.phantom_patients, size, preprocess["crop"], preprocess["fit"] == "letterbox", params.seed
        ),
    }
    measured = {
        kind: (run_batches(inference, squares, params.batch_size)[1], own) for kind, (squares, own) in new.items()
    }
    scores = score_novelty(known, groups, measured, params.resamples, params.seed)
    write_metrics(
        {"onnx_bytes": onnx.stat().st_size, "onnx_max_difference": round(difference, 7)} | scores, metrics
    )
    print(
        f"{onnx}: {onnx.stat().st_size / 1e6:.1f} MB, within {difference:.1g} of torch; "
        f"{100 * scores['novelty_flagged_test']:.1f}% of {len(tested)} test images count as unlike training images"
    )


if __name__ == "__main__":
    run(main)
