"""Score the trained network on the test rows."""

from pathlib import Path

import numpy as np

from braintumor import plots
from braintumor.batches import Batches
from braintumor.errors import UserError
from braintumor.params import load_params
from braintumor.scores import describe_scores, score_predictions
from braintumor.tables import TEST, TRAIN, read_table
from braintumor.training import choose_device, predict
from braintumor.weights import load_model
from stages import check_rows, run, write_csv, write_json


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
    array = np.load(images, mmap_mode="r")
    check_rows(array, table, images, split)
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
    write_csv(tested, predictions)
    trained = set(table["copy_group"][table["subset"] == TRAIN])
    scores = score_predictions(tested, trained)
    write_json(scores, metrics)
    write_csv(
        tested.rename(columns={"class": "actual", "prediction": "predicted"})[["actual", "predicted"]],
        confusion,
    )
    plots.save(plots.confusion(tested["class"], tested["prediction"]), picture)
    print(describe_scores(scores))


if __name__ == "__main__":
    run(main)
