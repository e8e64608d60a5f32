"""Compare ways to tell images unlike the training images, and time the model; writes both into docs/using.md.

The times go into metrics/latency.json as well, for the report of the same model.

Needs the real dataset and a finished `dvc repro`; nothing else should run on the machine. The photographs are
those that scikit-image ships, each whole and as four random cuts.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

import braintumor
from braintumor.deployed import SEEN, Describer, run_batches
from braintumor.device import processor
from braintumor.files import replacing_file
from braintumor.images import resize_square, to_grey
from braintumor.intervals import named, share
from braintumor.novelty import fit_novelty, noise_squares, phantom_squares, shuffled_blocks, told_apart
from braintumor.pages import fill_file, table
from braintumor.params import Export, load_params
from braintumor.predictor import Predictor
from braintumor.provenance import checksum
from braintumor.results import number_with_interval, with_interval
from braintumor.tables import TEST, TRAIN, VALIDATION, read_images, read_table
from braintumor.weights import load_model
from scripts import PROJECT, run_script

PAGE = PROJECT / "docs/using.md"
# Not its drawn head, its chessboards and colour charts, nor what is smaller than our images.
PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)


def photographs(size: int, seed: int, cuts: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-image's photographs, each whole and as random cuts: grey squares, and the photograph of each."""
    rng = np.random.default_rng(seed)
    squares = []
    for name in PHOTOGRAPHS:
        grey = to_grey(Image.open(Path(skimage.__file__).parent / "data" / name))
        squares.append(resize_square(grey, size))
        for _ in range(cuts):
            side = rng.integers(min(grey.shape) // 2, min(grey.shape) + 1)
            top, left = (rng.integers(0, length - side + 1) for length in grey.shape)
            squares.append(resize_square(np.ascontiguousarray(grey[top : top + side, left : left + side]), size))
    return np.stack(squares), np.repeat(PHOTOGRAPHS, 1 + cuts)


def distances(
    logits: dict[str, np.ndarray], features: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Say how new each set's images are, by each method; more is newer."""

    def mahalanobis(part: slice) -> dict[str, np.ndarray]:
        own = {name: values[:, part] for name, values in features.items()}
        novelty = fit_novelty(own[TRAIN], labels, own[VALIDATION], 0.02)
        return {name: novelty(torch.tensor(values)).numpy() for name, values in own.items()}

    unit = {name: values[:, :-SEEN] for name, values in features.items()}
    unit = {name: values / np.linalg.norm(values, axis=1, keepdims=True) for name, values in unit.items()}
    neighbours = NearestNeighbors(n_neighbors=10).fit(unit[TRAIN])
    return {
        "largest probability": {name: -softmax(values, 1).max(1) for name, values in logits.items()},
        "10th nearest neighbour, network's features": {
            name: neighbours.kneighbors(values)[0][:, -1] for name, values in unit.items()
        },
        "Mahalanobis, network's features": mahalanobis(slice(None, -SEEN)),
        "Mahalanobis, grey values": mahalanobis(slice(-SEEN, None)),
        "**Mahalanobis, both**": mahalanobis(slice(None)),
    }


def milliseconds(call: Callable[[], object], times: int = 50) -> float:
    """Return the median time of a call."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000 * float(np.median(taken[times // 10 :]))


def latencies(models: dict[str, Predictor], squares: np.ndarray) -> dict[str, dict[str, float]]:
    """Time each model on one thread: the milliseconds of one image, and of each of 64."""
    return {
        name: {
            "one": round(milliseconds(lambda model=model: model.run(squares[:1])), 2),
            "each_of_64": round(milliseconds(lambda model=model: model.run(squares[:64]), 10) / 64, 2),
        }
        for name, model in models.items()
    }


def latency_table(times: dict[str, dict[str, float]], device: str) -> str:
    """Write the times as a table of Markdown."""
    rows = [[name, f"{took['one']:.1f} ms", f"{took['each_of_64']:.1f} ms"] for name, took in times.items()]
    return table(["runs in", "one image", "each of 64"], rows) + f"\n\n{date.today()}, {device}."


def comparison(groups: dict[str, np.ndarray], methods: dict[str, dict[str, np.ndarray]], params: Export) -> str:
    """Write the table of methods: the area under the ROC curve against the test images, and the share flagged.

    Parameters
    ----------
    groups : dict of str to ndarray
        What is drawn together for the intervals, of the test images and of each kind of new ones.
    methods : dict of str to dict of str to ndarray
        How new the images of each set are, by each method.
    params : Export
    """
    kinds = [kind for kind in groups if kind != TEST]
    rows = []
    for method, scores in methods.items():
        limit = np.quantile(scores[VALIDATION], 1 - params.flagged)
        cells = [with_interval(named("marked", share(scores[TEST] > limit)), "marked")]
        for kind in kinds:
            drawn = params.resamples, params.seed
            told = told_apart(scores[TEST], groups[TEST], scores[kind], groups[kind], *drawn)
            written = named("area", told) | named("marked", share(scores[kind] > limit))
            cells.append(f"{number_with_interval(written, 'area')}<br>{with_interval(written, 'marked')}")
        rows.append([method, *cells])
    return table(["method", "test", *(f"{kind} ({len(groups[kind])})" for kind in kinds)], rows)


def main() -> None:
    params = load_params(PROJECT / "params.yaml").export
    torch.set_num_threads(1)
    folder = PROJECT / "models"
    model, described = load_model(folder / "model.safetensors", folder / "model.json")
    pool = read_table(PROJECT / "data/split.csv")
    array = read_images(PROJECT / "data/images.npy", pool)
    rows = {subset: np.flatnonzero(pool["subset"] == subset) for subset in (TRAIN, VALIDATION, TEST)}
    known = {subset: array[own] for subset, own in rows.items()}
    size, letterbox = array.shape[1], described.preprocess["fit"] == "letterbox"
    crop, tested = described.preprocess["crop"], pool["group"].to_numpy()[rows[TEST]]
    new = {
        "shuffled blocks": (shuffled_blocks(known[TEST], params.seed), tested),
        "noise": noise_squares(200, size, described.mean, described.deviation, params.seed),
        "photographs": photographs(size, params.seed),
        "phantoms": phantom_squares(params.phantom_patients, size, crop, letterbox, params.seed),
    }
    groups = {TEST: tested} | {kind: own for kind, (_, own) in new.items()}
    describer = Describer(model, described.mean, described.deviation, len(described.classes))
    sets = known | {kind: squares for kind, (squares, _) in new.items()}
    described_sets = {name: run_batches(describer, squares, 64) for name, squares in sets.items()}
    logits, features = ({name: both[i] for name, both in described_sets.items()} for i in (0, 1))
    labels = pool["class"].iloc[rows[TRAIN]].map(described.classes.index).to_numpy()
    methods = distances(logits, features, labels)
    models = {"torch": braintumor.load(folder), "onnxruntime": braintumor.load(folder / "model.onnx")}
    device = f"one thread of {processor()}, {os.cpu_count()} cores"
    took = latencies(models, known[TEST])
    measured = {"onnx_sha256": checksum(folder / "model.onnx"), "device": device, "milliseconds": took}
    with replacing_file(PROJECT / "metrics/latency.json") as beside:
        beside.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    tables = {"novelty": comparison(groups, methods, params), "latency": latency_table(took, device)}
    print(*tables.values(), sep="\n\n")
    fill_file(PAGE, tables)


if __name__ == "__main__":
    run_script(main)
