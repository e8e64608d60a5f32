"""Score the trained network on the test rows."""

from pathlib import Path

import numpy as np

from braintumor import plots
from braintumor.batches import Batches
from braintumor.device import choose_device
from braintumor.errors import UserError
from braintumor.params import load_params
from braintumor.scores import describe_scores, score_predictions
from braintumor.tables import TEST, TRAIN, VALIDATION, read_images, read_table, write_metrics, write_table
from braintumor.training import predict
from braintumor.weights import load_model
from stages import run


def main(
    images: Path,
    split: Path,
    weights: Path,
    description: Path,
    metrics: Path,
    predictions: Path,
    confusion: Path,
    picture: Path,
) -> None:
    params = load_params(Path("params.yaml")).evaluate
    device = choose_device(params.device, params.threads)
    model, described = load_model(weights, description)
    table = read_table(split)
    array = read_images(images, table)
    classes = list(described.classes)
    if classes != sorted(table["class"].unique()):
        raise UserError(
            f"{description} knows the classes {', '.join(classes)}, but {split} has "
            f"{', '.join(sorted(table['class'].unique()))}: train again"
        )
    rows = np.flatnonzero(table["subset"] == TEST)
    labels = table["class"].map(classes.index).to_numpy()[rows]
    batches = Batches(array, rows, labels, params.batch_size, described.mean, described.deviation, device)
    probabilities = predict(model.to(device), batches).softmax(1).numpy()

    tested = table.iloc[rows].drop(columns="subset").reset_index(drop=True)
    tested["prediction"] = [classes[i] for i in probabilities.argmax(1)]
    for i, name in enumerate(classes):
        tested[f"probability_{name}"] = probabilities[:, i].round(6)
    write_table(tested, predictions)
    seen = set(table["copy_group"][table["subset"].isin([TRAIN, VALIDATION])])
    scores = score_predictions(tested, seen)
    write_metrics(scores, metrics)
    write_table(
        tested.rename(columns={"class": "actual", "prediction": "predicted"})[["actual", "predicted"]],
        confusion,
    )
    plots.save(plots.confusion(tested["class"], tested["prediction"]), picture)
    print(describe_scores(scores))


if __name__ == "__main__":
    run(main)
