"""The exported model at the end of the pipeline, and what docs/using.md says of it."""

import json
import re

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import braintumor
from braintumor.pages import fill
from braintumor.tables import read_table
from scripts.novelty import PHOTOGRAPHS, photographs
from tests.conftest import PROJECT
from tests.test_scans import write_dicom

PAGE = (PROJECT / "docs/using.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("model", ["models", "models/model.onnx"])
def test_the_model_gives_what_the_evaluation_found(finished, model):
    predictions = read_table(finished.folder / "data/predictions.csv")
    split = read_table(finished.folder / "data/split.csv")
    squares = np.load(finished.folder / "data/images.npy")[(split["subset"] == "test").to_numpy()]
    predictor = braintumor.load(finished.folder / model)
    logits, _ = predictor.run(squares)
    columns = [f"probability_{name}" for name in predictor.classes]
    assert softmax(logits, axis=1) == pytest.approx(predictions[columns].to_numpy(), abs=1e-4)
    said = predictor.predict_squares(squares)
    known = [(one.label, label) for one, label in zip(said, predictions["prediction"], strict=True) if one.label]
    assert len(known) > 0.7 * len(said)
    assert all(label == prediction for label, prediction in known)


@pytest.mark.parametrize("model", ["models", "models/model.onnx"])
def test_files_come_to_what_the_pipeline_made_of_them(finished, model):
    predictions = read_table(finished.folder / "data/predictions.csv").head(6)
    predictor = braintumor.load(finished.folder / model)
    for row in predictions.to_dict("records"):
        said = predictor.predict(Image.open(finished.folder / "data/raw" / row["path"]))
        shares = softmax([said.logits[name] for name in predictor.classes])
        expected = [row[f"probability_{name}"] for name in predictor.classes]
        assert shares == pytest.approx(expected, abs=0.05)  # Pillow decodes a file at a smaller size


def test_the_metrics_are_those_of_the_file(finished):
    metrics = json.loads((finished.folder / "metrics/export.json").read_text())
    assert metrics["onnx_bytes"] == (finished.folder / "models/model.onnx").stat().st_size
    assert 0 <= metrics["onnx_max_difference"] < 1e-4
    assert metrics["novelty_auroc_noise"] > 0.95 and metrics["novelty_auroc_shuffled"] > 0.8
    # Phantoms are what it was trained on here.
    assert metrics["novelty_auroc_phantoms"] < metrics["novelty_auroc_shuffled"]
    assert metrics["novelty_flagged_test"] < 0.3


def test_photographs_are_unlike_the_training_images(finished):
    predictor = braintumor.load(finished.folder / "models/model.onnx")
    said = predictor.predict_squares(photographs(48, seed=0)[0])
    assert len(said) == 5 * len(PHOTOGRAPHS)
    assert np.mean([one.unlike_training for one in said]) > 0.9


def test_what_is_to_be_unlike_is_a_param(checkout):
    split = read_table(checkout.folder / "data/split.csv")
    squares = np.load(checkout.folder / "data/images.npy")[(split["subset"] == "validation").to_numpy()]
    checkout.params({"export": {"flagged": 0.5}})
    checkout.run("dvc repro export")
    _, novelty = braintumor.load(checkout.folder / "models").run(squares)
    assert np.mean(novelty > 1) == pytest.approx(0.5, abs=1 / len(squares))


def test_a_table_takes_its_place_in_the_page():
    for name in ("novelty", "latency"):
        assert "\n| new |\n" in fill(PAGE, name, "| new |")
        assert PAGE.count(f"<!-- {name} -->") == 1
    assert fill(fill(PAGE, "novelty", "old"), "novelty", "new") == fill(PAGE, "novelty", "new")


@pytest.mark.slow
def test_the_pages_commands_work(checkout):
    grey = np.asarray(Image.open(next((checkout.folder / "data/raw/Testing").glob("*/*.jpg"))).convert("L"))
    write_dicom(checkout.folder / "slice.dcm", grey.copy())
    Image.fromarray(grey).save(checkout.folder / "slice.png")
    nibabel.save(nibabel.Nifti1Image(np.stack([grey] * 8, axis=2), np.eye(4)), checkout.folder / "volume.nii.gz")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    programs = [f"python - <<'END'\n{block}END" for block in blocks("python")]
    assert len(commands) == 6 and len(programs) == 1
    output = checkout.run("set -e\n" + "\n".join(commands + programs).replace("_000*", "*"))
    assert output.count("Research only, not a medical device.") == 4
    assert len(json.loads((checkout.folder / "answers.json").read_text())) == 9
    assert len((checkout.folder / "answers.csv").read_text().splitlines()) > 20
    assert len(list((checkout.folder / "overlays").iterdir())) <= 1
