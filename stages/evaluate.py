"""Score the trained network on the test rows."""

from pathlib import Path

import numpy as np
import pandas as pd

from braintumor import plots
from braintumor.calibration import calibrate, load_temperature, reliability, score_calibration
from braintumor.detection import missed_tumours, score_detection
from braintumor.device import choose_device
from braintumor.inference import black, subset_batches
from braintumor.intervals import named, resample_groups, share
from braintumor.params import load_params
from braintumor.predictions import add_probabilities, mark_seen
from braintumor.ranking import curves, risk_coverage, risks
from braintumor.scores import describe_scores, flat_metrics, score_classes, score_predictions
from braintumor.shortcuts import baseline_metrics, predict_shortcuts, score_shortcuts
from braintumor.subgroups import score_subgroups
from braintumor.subsets import make_subsets, subset_table
from braintumor.tables import TEST, TRAIN, read_images, read_table, write_metrics, write_table
from braintumor.training import predict
from braintumor.views import AveragedViews, BorderOnly, choose_views
from braintumor.weights import load_model
from stages import run


def main(
    images: Path,
    split: Path,
    manifest: Path,
    weights: Path,
    description: Path,
    temperature: Path,
    predictions: Path,
    missed: Path,
    metrics: Path,
    calibration: Path,
    baselines: Path,
    confusion: Path,
    picture: Path,
    overview: Path,
    subsets: Path,
    class_scores: Path,
    subgroups: Path,
    shortcuts: Path,
    bins: Path,
    risk: Path,
    roc: Path,
    pr: Path,
) -> None:
    params = load_params(Path("params.yaml")).evaluate
    device = choose_device(params.device, params.threads)
    model, described = load_model(weights, description)
    model.to(device)
    names = list(described.classes)
    table, files = read_table(split), read_table(manifest)
    array = read_images(images, table)
    batches = subset_batches(table, array, TEST, described, params.batch_size, device)
    labels, logits = batches.labels.cpu().numpy(), predict(model, batches).numpy()
    degree = load_temperature(temperature)
    before, after = calibrate(logits, 1), calibrate(logits, degree)
    tested = add_probabilities(mark_seen(table), names, before, after)
    write_table(tested, predictions)
    resamples = resample_groups(tested["group"].to_numpy(), params.resamples, params.seed)
    actual, predicted = tested["class"].to_numpy(object), tested["prediction"].to_numpy(object)

    # How much is right, on which part of the test set.
    parts, by_class = make_subsets(tested, before, names), score_classes(labels, before, names, resamples)
    scores = flat_metrics(parts, score_predictions(labels, before, resamples), by_class)
    negative = params.negative if params.negative in names else None
    if negative is not None:
        scores |= score_detection(actual, predicted, negative)
    elif params.negative is not None:
        print(f"no class is called {params.negative} (evaluate.negative): tumour against none is left out")
    write_table(missed_tumours(tested, negative), missed)
    for name, (flip, scales) in choose_views(params.flips, params.scales).items():
        averaged = predict(AveragedViews(model, flip, scales, black(described)), batches).numpy()
        scores |= named(f"accuracy_{name}", share(averaged.argmax(1) == labels))
    write_metrics(scores, metrics)
    write_table(pd.DataFrame({"actual": actual, "predicted": predicted}), confusion)
    plots.save(plots.confusion(tested["class"], tested["prediction"]), picture)
    write_table(subset_table(parts), subsets)
    write_table(by_class, class_scores)
    groups = score_subgroups(files[table["subset"] == TEST], actual == predicted, params.smallest_subgroup)
    write_table(groups, subgroups)

    # Whether a probability means what it says.
    scored = score_calibration(logits, labels, degree, params.bins, resamples)
    write_metrics({"temperature": degree} | scored | risks(after, labels), calibration)
    diagram, coverage = reliability(logits, labels, degree, params.bins), risk_coverage(after, labels)
    write_table(diagram, bins)
    write_table(coverage, risk)
    for curve, file in zip(curves(labels, before, names), (roc, pr), strict=True):
        write_table(curve, file)

    # How much of it needs no anatomy.
    trained, rows = (np.flatnonzero(table["subset"] == subset) for subset in (TRAIN, TEST))
    guesses = predict_shortcuts(files, array, trained, rows, params.border, params.seed, params.threads)
    bordered = predict(BorderOnly(model, params.border), batches).numpy().argmax(1)
    guesses |= {"network_border": np.array(names, object)[bordered], "network": predicted}
    compared = score_shortcuts(actual, guesses, negative)
    write_table(compared, shortcuts)
    write_metrics(baseline_metrics(compared), baselines)
    plots.save(plots.evaluation(subset_table(parts), compared, diagram, coverage), overview)
    print(describe_scores(scores))


if __name__ == "__main__":
    run(main)
