"""The whole pipeline, by DVC itself, on a tiny phantom set."""

import ast
import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from PIL import Image

from braintumor.params import load_params, pick, with_overrides
from braintumor.tables import read_table
from braintumor.training import Recipe
from braintumor.weights import load_model
from stages.train import configuration
from tests.conftest import PROJECT

STAGES = [
    "download", "audit", "preprocess", "split", "lr_range", "train", "calibrate", "evaluate", "explain", "export",
    "report",
]  # fmt: skip
DVC = yaml.safe_load((PROJECT / "dvc.yaml").read_text())


def paths(stage, *kinds):
    """Return the paths that a stage lists as outs, metrics or plots."""
    listed = [out for kind in kinds for out in DVC["stages"][stage].get(kind, [])]
    return [name for out in listed for name in ([out] if isinstance(out, str) else out)]


def read_json(checkout, name):
    return json.loads((checkout.folder / name).read_text())


def is_training(process):
    """Whether a process of psutil is the stage train."""
    return process.cmdline()[1:3] == ["-m", "stages.train"]


def test_every_stage_runs_once_and_then_there_is_nothing_to_do(finished):
    assert all(f"Running stage '{stage}'" in finished.first_output for stage in STAGES)
    assert "up to date" in finished.run("dvc status")
    assert finished.stages_run_by("dvc repro") == []
    assert finished.run("git status --porcelain") == ""


def test_the_tables_and_arrays_belong_together(finished):
    data = finished.folder / "data"
    manifest, split, predictions = (
        read_table(data / f"{name}.csv") for name in ("manifest", "split", "predictions")
    )
    images = np.load(data / "images.npy")
    assert images.shape == (len(manifest), 48, 48) and images.dtype == np.uint8
    assert split["path"].tolist() == manifest["path"].tolist()
    assert predictions["path"].tolist() == split["path"][split["subset"] == "test"].tolist()
    probabilities = predictions.filter(like="probability_")
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    best = probabilities.idxmax(axis=1).str.removeprefix("probability_")
    assert best.tolist() == predictions["prediction"].tolist()
    calibrated = predictions.filter(like="calibrated_")
    assert calibrated.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    truth = predictions["path"].str.split("/").str[1]
    assert truth.tolist() == predictions["class"].tolist()


def test_no_patient_and_no_copy_is_in_two_subsets(finished):
    split = read_table(finished.folder / "data/split.csv")
    for column in ("patient", "copy_group", "group"):
        assert (split.groupby(column)["subset"].nunique() == 1).all()


def test_the_planted_copies_are_counted(finished):
    planted = pd.read_csv(finished.folder / "data/raw/copies.csv")
    crossing = planted["path"].str.startswith("Testing") & planted["source"].str.startswith("Training")
    metrics = read_json(finished, "metrics/data.json")
    assert metrics["distinct_images"] == metrics["images"] - len(planted)
    assert metrics["copied_testing_images"] == crossing.sum() > 0
    assert metrics["contradictory_copy_groups"] == 1
    assert metrics["patients_in_both"] > 0


def test_the_metrics_agree_with_the_predictions(finished):
    predictions = read_table(finished.folder / "data/predictions.csv")
    test = read_json(finished, "metrics/test.json")
    assert test["accuracy"] == pytest.approx((predictions["class"] == predictions["prediction"]).mean(), abs=5e-5)
    confusion = pd.read_csv(finished.folder / "plots/confusion.csv")
    assert confusion["actual"].tolist() == predictions["class"].tolist()
    assert confusion["predicted"].tolist() == predictions["prediction"].tolist()
    for name in ("data", "train", "test", "calibration", "baselines", "explain", "export"):
        assert all(
            isinstance(value, int | float) for value in read_json(finished, f"metrics/{name}.json").values()
        )


def test_the_tables_of_the_evaluation_agree_with_the_metrics(finished):
    plots = finished.folder / "plots"
    test, baselines, calibration = (
        read_json(finished, f"metrics/{name}.json") for name in ("test", "baselines", "calibration")
    )
    subsets = pd.read_csv(plots / "subsets.csv", index_col="subset")
    for name in ("distinct", "copy_free", "patient_free", "patients", "patients_together"):
        assert subsets.loc[name, "accuracy"] == test[f"accuracy_{name}"], name
        assert subsets.loc[name, "low"] == test[f"accuracy_{name}_low"], name
    assert subsets.loc["copied", "units"] == test["images_copied"] == 0
    table = pd.read_csv(plots / "baselines.csv", index_col="baseline")
    assert table.index.tolist() == ["majority", "size", "intensity", "border", "network_border", "network"]
    assert table.loc["network", "accuracy"] == baselines["accuracy_network"] == test["accuracy"]
    classes = pd.read_csv(plots / "class_scores.csv", index_col="class")
    assert classes.loc["glioma", "sensitivity_high"] == test["sensitivity_glioma_high"]
    assert classes["images"].sum() == test["images"]
    temperature = read_json(finished, "models/calibration.json")["temperature"]
    assert calibration["temperature"] == temperature
    predictions = read_table(finished.folder / "data/predictions.csv")
    cooled = predictions.filter(like="probability_").to_numpy() ** (1 / temperature)
    cooled /= cooled.sum(axis=1, keepdims=True)
    assert predictions.filter(like="calibrated_").to_numpy() == pytest.approx(cooled, rel=1e-3)
    missed = read_table(finished.folder / "data/missed_tumours.csv")
    assert len(missed) == test["tumours_missed"] == round(test["tumours"] * (1 - test["tumour_sensitivity"]))
    subgroups = pd.read_csv(plots / "subgroups.csv")
    assert (subgroups.groupby("subgroup")["images"].sum() == test["images"]).all()
    assert (subgroups["too_small"] == subgroups["low"].isna()).all()
    images = pd.read_csv(plots / "reliability.csv").groupby("calibration")["images"].sum()
    assert images.tolist() == [test["images"]] * 2


def test_the_temperature_comes_from_the_validation_rows(finished, checkout):
    """Other labels of test images leave it as it is, other ones of validation images do not."""
    split = read_table(checkout.folder / "data/split.csv")
    command = DVC["stages"]["calibrate"]["cmd"].replace("data/split.csv", "other.csv")
    command = command.replace("models/calibration.json", "other.json")

    def temperature(subset):
        classes = split["class"].where(split["subset"] != subset, split["class"].iloc[::-1].to_numpy())
        split.assign(**{"class": classes}).to_csv(checkout.folder / "other.csv", index=False)
        checkout.run(command)
        return read_json(checkout, "other.json")["temperature"]

    known = read_json(finished, "models/calibration.json")["temperature"]
    assert temperature("test") == known
    assert temperature("validation") != known


def test_the_curves_have_a_line_per_epoch(finished):
    curves = pd.read_csv(finished.folder / "plots/curves.csv")
    scores = [
        f"{s}_{name}" for s in ("train", "validation") for name in ("loss", "accuracy", "precision", "recall")
    ]
    assert curves.columns.tolist() == ["epoch", "lr", *scores]
    assert curves["epoch"].tolist() == [1, 2]
    live = pd.read_csv(finished.folder / "plots/live/plots/metrics/validation_accuracy.tsv", sep="\t")
    assert live["step"].tolist() == [1, 2]
    assert live["validation_accuracy"].tolist() == curves["validation_accuracy"].tolist()


def test_the_model_on_disk_says_all_that_is_needed_to_use_it(finished):
    described = read_json(finished, "models/model.json")
    assert described["classes"] == ["glioma", "meningioma", "notumor", "pituitary"]
    assert described["preprocess"] == {"size": 48, "crop": False, "fit": "stretch"}
    split = read_table(finished.folder / "data/split.csv")
    trained = np.load(finished.folder / "data/images.npy")[(split["subset"] == "train").to_numpy()] / 255
    assert described["mean"] == pytest.approx(trained.mean(), abs=1e-9)
    assert described["deviation"] == pytest.approx(trained.std(), abs=1e-9)


def test_every_wrong_image_and_some_right_ones_are_explained(finished):
    data = finished.folder / "data"
    explained, predictions, split = (
        read_table(data / f"{name}.csv") for name in ("saliency", "predictions", "split")
    )
    maps, images = np.load(data / "saliency.npy"), np.load(data / "images.npy")
    assert maps.shape == (len(explained), 48, 48) and maps.dtype == np.uint8
    assert set(maps.max(axis=(1, 2)).tolist()) <= {0, 255}  # 0: nothing speaks for the class
    wrong = predictions[predictions["class"] != predictions["prediction"]]
    assert explained["path"].tolist()[: len(wrong)] == wrong["path"].tolist()
    rest = explained.iloc[len(wrong) :]
    assert rest["right"].all() and not explained["right"].iloc[: len(wrong)].any()
    right = predictions[predictions["class"] == predictions["prediction"]]
    counts = right["class"].value_counts().clip(upper=2)
    assert rest["class"].value_counts().to_dict() == counts.to_dict()
    assert split["path"].iloc[explained["row"]].tolist() == explained["path"].tolist()
    subsets = split.set_index("path")["subset"]
    assert set(subsets[explained["nearest"]]) == {"train"}
    assert explained["nearest_similarity"].between(-1, 1).all()
    assert images.shape[1:] == maps.shape[1:]
    metrics = read_json(finished, "metrics/explain.json")
    # Every phantom but those without tumour has a mask.
    assert metrics["located"] == (predictions["class"] != "notumor").sum()
    assert metrics["images"] == len(predictions)
    names = {file.stem for file in (finished.folder / "plots/explain").iterdir()}
    classes = ("glioma", "meningioma", "notumor", "pituitary")
    assert names >= {f"layers_{name}" for name in classes} | {"filters", "augmentation", "randomisation"}
    assert {"dropout_sums", "dropout_image"} <= names
    assert ("gradcam_errors" in names) == (len(wrong) > 0)
    assert ("gradcam_right" in names) == (len(right) > 0)


def test_boxes_are_a_file_that_is_there_or_an_error_of_one_line(checkout):
    checkout.params({"explain": {"boxes": "no/such.csv"}})
    output = checkout.run(DVC["stages"]["explain"]["cmd"], code=1)
    assert "error: explain.boxes: no/such.csv cannot be read: No such file or directory" in output
    assert "Traceback" not in output
    checkout.params({"explain": {"boxes": None}})
    checkout.run(DVC["stages"]["explain"]["cmd"])
    assert "pointing" not in read_json(checkout, "metrics/explain.json")
    assert "pointing" not in pd.read_csv(checkout.folder / "plots/randomisation.csv")


def test_predictions_of_another_split_are_one_line(checkout):
    predictions = checkout.folder / "data/predictions.csv"
    table = read_table(predictions).iloc[:-1]
    predictions.unlink()  # a link into the cache
    table.to_csv(predictions, index=False)
    output = checkout.run(DVC["stages"]["explain"]["cmd"], code=1)
    assert output.strip() == (
        "error: data/predictions.csv is not of the test images of the split: run the stage evaluate"
    )


def test_an_input_that_is_not_there_is_one_line(checkout):
    (checkout.folder / "data/manifest.csv").unlink()
    output = checkout.run(DVC["stages"]["split"]["cmd"], code=1)
    assert output.strip() == "error: data/manifest.csv: No such file or directory"


def test_a_cut_by_copy_still_knows_whose_images_are_not_independent(checkout):
    checkout.params({"split": {"group_by": "copy"}})
    checkout.run(DVC["stages"]["split"]["cmd"])
    manifest, split = (read_table(checkout.folder / f"data/{name}.csv") for name in ("manifest", "split"))
    assert split["group"].tolist() == manifest["group"].tolist()
    assert split.groupby("copy_group")["subset"].nunique().max() == 1
    assert split.groupby("group")["subset"].nunique().max() > 1


@pytest.mark.long
@pytest.mark.parametrize("model", ["cnn0", "torchvision/shufflenet_v2_x0_5"])
def test_other_networks_are_explained_too(checkout, model):
    checkout.params({"train": {"model": model, "channels": None, "epochs": 1}, "explain": {"boxes": None}})
    checkout.run("dvc repro")
    assert read_json(checkout, "metrics/explain.json")["cells"] >= 16


def stages_after(section):
    """Return the stages that read a section of the params, and all that come after one of them."""
    found = []
    for name in STAGES:  # in an order in which none comes before what it needs
        made = {out for stage in found for out in paths(stage, "outs", "metrics", "plots")}
        if section in DVC["stages"][name]["params"] or made & set(DVC["stages"][name]["deps"]):
            found.append(name)
    return found


AFTER_TRAINING = ["calibrate", "evaluate", "explain", "export", "report"]


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        ("audit", STAGES[1:]),
        ("preprocess", ["preprocess", "lr_range", "train", *AFTER_TRAINING]),
        ("split", ["split", "lr_range", "train", *AFTER_TRAINING]),
        ("train", ["lr_range", "train", *AFTER_TRAINING]),
        ("evaluate", AFTER_TRAINING),
        ("explain", ["explain", "report"]),
        ("export", ["export", "report"]),
        ("report", ["report"]),
    ],
)
def test_a_section_of_params_bears_on_its_stages_and_what_comes_after_them(section, stages):
    assert stages_after(section) == stages


def test_a_param_runs_the_stages_that_it_bears_on(checkout):
    run = checkout.stages_run_by("dvc exp run -S evaluate.batch_size=7")
    # The same temperature and the same predictions: what explains and exports them has nothing to do.
    assert run == ["calibrate", "evaluate", "report"]


def test_another_size_gives_other_images(checkout):
    # DVC's run cache leaves what is called size out of its keys.
    checkout.run("dvc exp run -S preprocess.size=32 preprocess")
    assert np.load(checkout.folder / "data/images.npy").shape[1:] == (32, 32)


def test_a_small_rate_on_the_command_line_is_a_number(checkout):
    checkout.run("dvc exp run -S train.lr=1e-5 -S train.schedule=constant -S train.warmup=0 --single-item train")
    assert "lr: 1e-05" in (checkout.folder / "params.yaml").read_text()
    assert pd.read_csv(checkout.folder / "plots/curves.csv")["lr"].tolist() == [1e-5, 1e-5]


def test_a_param_that_does_not_exist_is_one_line_before_any_work(checkout):
    assert "Could not override 'train.droput'" in checkout.run("dvc exp run -S train.droput=0.5", code=255)
    checkout.params({"train": {"droput": 0.5}})
    output = checkout.run("dvc repro", code=255)
    assert "error: params.yaml: train.droput: unknown param, did you mean dropout?" in output
    assert "Traceback" not in output
    checkout.params({"train": {"epochs": "many"}})
    checkout.link_venv()
    output = checkout.run("make repro", code=2)
    assert "train.epochs: must be a valid integer, got 'many'" in output
    assert "Running stage" not in output


@pytest.mark.slow
def test_experiments_start_from_a_clean_clone(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")  # no out is in place
    clone.run("dvc exp run --temp --name warm -S train.dropout=0.4 train")
    clone.run("dvc exp run --queue --name cold -S train.dropout=0.1 train && dvc exp run --run-all")
    assert clone.run("git status --porcelain") == ""
    for name in ("warm", "cold"):
        assert "train.dropout" in clone.run(f"dvc params diff HEAD {name} --md")


def test_a_push_and_a_pull_leave_nothing_to_do(finished, tmp_path):
    first = finished.clone(tmp_path / "first")
    first.run(f"dvc remote add --local --default store {tmp_path / 'store'}")
    first.run("dvc fetch --run-cache; dvc checkout --quiet && dvc push")
    second = finished.clone(tmp_path / "second")
    second.run("rm .dvc/config.local")  # a cache of its own
    second.run(f"dvc remote add --local --default store {tmp_path / 'store'} && dvc pull")
    assert "up to date" in second.run("dvc status")
    assert second.stages_run_by("dvc repro") == []


def test_every_plot_is_drawn_once(checkout):
    drawn = json.loads(checkout.run("dvc plots show --json"))["data"]
    files = ["classes.csv", "sizes.csv", "data.png", "lr_range.csv", "curves.csv", "confusion.csv"]
    files += [
        "confusion.png",
        "evaluation.png",
        "subsets.csv",
        "class_scores.csv",
        "subgroups.csv",
        "baselines.csv",
    ]
    files += ["reliability.csv", "risk_coverage.csv", "roc.csv", "pr.csv", "randomisation.csv"]
    assert sorted(drawn) == sorted(
        ["Loss", "Accuracy", "Macro precision", "Macro recall", *(f"plots/{name}" for name in files)]
    )
    page = checkout.run("dvc plots show --out drawn && cat drawn/index.html")
    titles = ["Images per class and folder", "Widths and heights", "Learning rate", "Learning-rate range test"]
    titles += ["Confusion matrix", "Reliability", "ROC, one class against the rest", "Accuracy on subsets"]
    for title in titles:
        assert title in page


def make_folder(target, folders, n=12):
    """Two classes that a mean tells apart, in folders of their own."""
    rng = np.random.default_rng(0)
    for folder in folders:
        for label, low in (("cats", 0), ("dogs", 120)):
            (target / folder / label).mkdir(parents=True)
            for i in range(n):
                cells = rng.integers(low, low + 120, (8, 8), np.uint8)
                Image.fromarray(cells).resize((60, 60)).save(target / folder / label / f"{i:02}.png")


@pytest.mark.parametrize(
    ("folders", "protocol", "patients"),
    [
        pytest.param(["."], "grouped", "data/raw/patients.csv", marks=pytest.mark.slow),  # all stages
        (["Training", "Testing"], "copy_free", None),
    ],
)
def test_a_folder_of_ones_own_goes_all_the_way_with_its_own_classes(
    checkout, tmp_path, folders, protocol, patients
):
    make_folder(tmp_path / "mine", folders)
    (tmp_path / "mine" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "mine" / "patients.csv").write_text(
        "path,patient\n" + "".join(f"Training/dogs/{i:02}.png,rex\n" for i in range(4))
    )
    checkout.params(
        {
            "data": {"source": "folder", "folder": str(tmp_path / "mine")},
            "audit": {"patients": patients},
            "split": {"protocol": protocol},
            "explain": {"boxes": None},
        }
    )
    checkout.run("dvc repro" if patients else "dvc repro split")
    split = read_table(checkout.folder / "data/split.csv")
    assert split["patient"].dropna().tolist() == (["rex"] * 4 if patients else [])
    assert split["subset"][split["patient"] == "rex"].nunique() <= 1
    assert (split["subset"] == "test").sum() == (24 if protocol == "copy_free" else 8)
    if not patients:
        return
    assert read_json(checkout, "models/model.json")["classes"] == ["cats", "dogs"]
    test = read_json(checkout, "metrics/test.json")
    assert "sensitivity_dogs" in test and "tumour_sensitivity" not in test  # none of them is no tumour
    assert (checkout.folder / "data/missed_tumours.csv").read_text() == "path,class,prediction,patient\n"
    page = (checkout.folder / "report/index.html").read_text()
    assert "Every missed tumour" not in page and ">dogs</th>" in page


def test_a_download_that_fails_leaves_what_was_there(checkout):
    before = sorted((checkout.folder / "data/raw").rglob("*"))
    checkout.params({"data": {"source": "folder", "folder": "/no/such/folder"}})
    output = checkout.run("dvc repro", code=255)
    assert "error: /no/such/folder: does not exist" in output
    assert sorted((checkout.folder / "data/raw").rglob("*")) == before


def test_a_stage_run_by_hand_does_not_write_into_the_cache(checkout):
    before = (checkout.folder / "metrics/data.json").read_text()
    checkout.params({"split": {"seed": 7}})
    checkout.run("python -m stages.split --manifest data/manifest.csv --split data/split.csv")
    checkout.run("git checkout params.yaml && dvc checkout --force")
    assert "up to date" in checkout.run("dvc status")
    assert (checkout.folder / "metrics/data.json").read_text() == before


def test_a_training_that_is_killed_goes_on_and_ends_as_if_it_had_not(checkout):
    outs = ["models/model.safetensors", "metrics/train.json", "plots/curves.csv"]
    command = DVC["stages"]["train"]["cmd"].replace("${train.launcher}", "python")
    checkout.params({"train": {"epochs": 8}})  # of four steps each
    assert "going on" not in checkout.run(command)
    undisturbed = [(checkout.folder / out).read_bytes() for out in outs]
    # In turn, each from where the one before has left it. A kill loses the epoch that runs; a SIGTERM, or Ctrl-C,
    # is answered after the step that runs, with what was done of the epoch.
    begun = None
    for step, number, code, left in (
        (10, signal.SIGKILL, -9, "2 of 8"),
        (7, signal.SIGTERM, 143, "3 of 8 and 3 of 4 batches of the next"),
        (6, signal.SIGINT, 130, "5 of 8 and 1 of 4 batches of the next"),
    ):
        output = checkout.run(checkout.train_until(step, number), code)
        assert ("stopped: models/unfinished/training-" in output) == (number != signal.SIGKILL)
        assert begun is None or f"going on after epoch {begun}\n" in output
        begun = left
    # Code that no training runs does not part it from its state.
    report = checkout.folder / "braintumor/report.py"
    report.write_text(report.read_text() + "# another wording\n")
    output = checkout.run(command)
    assert f"going on after epoch {begun}\n" in output
    assert "epoch 1/8" not in output
    assert [(checkout.folder / out).read_bytes() for out in outs] == undisturbed
    assert not (checkout.folder / "models/unfinished").exists()


@pytest.mark.slow
def test_for_dvc_a_preempted_training_has_failed_and_goes_on_in_its_own_checkout_only(checkout):
    checkout.params({"train": {"epochs": 8}})
    process = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=checkout.folder, env=checkout.env, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("epoch 2/8"):
            children = psutil.Process(process.pid).children(recursive=True)
            (training,) = (child for child in children if is_training(child))
            training.terminate()
            break
    process.stdout.read()
    assert process.wait() != 0
    assert (checkout.folder / "models/unfinished").exists()
    assert "modified" in checkout.run("dvc status train")
    # An experiment in a copy does not find the state, though its params are the same.
    output = checkout.run("dvc exp run --temp train")
    assert "epoch 1/8" in output and "going on" not in output
    output = checkout.run("dvc repro --no-run-cache train")
    assert re.search(r"going on after epoch [234] of 8", output) and "epoch 1/8" not in output
    assert not (checkout.folder / "models/unfinished").exists()
    weights = (checkout.folder / "models/model.safetensors").read_bytes()
    # There and back: both trainings are in the run cache.
    checkout.run("git checkout params.yaml")
    assert "train" not in checkout.stages_run_by("dvc repro train")
    checkout.params({"train": {"epochs": 8}})
    assert "train" not in checkout.stages_run_by("dvc repro train")
    assert (checkout.folder / "models/model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_training_whose_dvc_was_killed_keeps_others_away_and_can_be_taken_up(checkout):
    checkout.params({"train": {"epochs": 500}})
    process = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=checkout.folder, env=checkout.env, stdout=subprocess.PIPE, text=True
    )
    assert any(line.startswith("epoch 2/500") for line in process.stdout)
    (training,) = (child for child in psutil.Process(process.pid).children(recursive=True) if is_training(child))
    process.kill()
    process.wait()
    output = checkout.run("dvc repro train", code=255)
    assert output.count(f"error: models/unfinished/lock: process {training.pid} on ") == 1
    assert training.is_running()
    training.terminate()
    psutil.wait_procs([training], timeout=30)
    output = checkout.run(checkout.train_until(2, signal.SIGTERM), code=143)
    assert "going on after epoch" in output and "epoch 1/500" not in output


def test_a_training_that_is_done_is_not_thrown_away_by_a_sigterm(checkout):
    # It comes when all is written, before the process has ended.
    checkout.params({"train": {"epochs": 1}})
    patch = (
        "import os, braintumor.checkpoint as checkpoint\n"
        "delete = checkpoint.Checkpoint.delete\n"
        "def interrupted(self):\n"
        f"    os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "    delete(self)\n"
        "checkpoint.Checkpoint.delete = interrupted\n"
    )
    checkout.run(checkout.train_with(patch, "python"))
    assert (checkout.folder / "models/model.safetensors").exists()
    assert not list((checkout.folder / "models").glob("unfinished/*.pt"))


def test_a_rate_of_auto_is_what_the_range_test_suggests(checkout):
    checkout.params({"train": {"lr": "auto", "schedule": "constant", "warmup": 0.0, "epochs": 1}})
    suggestion = checkout.folder / "metrics/lr_range.json"
    command = DVC["stages"]["train"]["cmd"].replace("${train.launcher}", "python")
    suggestion.write_text('{"suggested_lr": 0.0123}')
    checkout.run(command)
    assert pd.read_csv(checkout.folder / "plots/curves.csv")["lr"].tolist() == [0.0123]
    suggestion.write_text("{}")
    output = checkout.run(command, code=1)
    assert "error: train.lr=auto: metrics/lr_range.json suggests no rate" in output
    assert "Traceback" not in output


def test_a_stage_whose_training_diverges_keeps_the_best_weights_and_fails(checkout):
    """The training itself is made to diverge in test_training.py."""
    patch = (
        "from braintumor.training import Diverged\n"
        "def diverge(training, checkpoint, live):\n"
        "    training.run_epoch()\n"
        "    raise Diverged('loss', float('nan'), 2, 1, 5, 0.3)\n"
        "stage.run_epochs = diverge\n"
        "stage.keep_freed_memory = lambda: print('freed memory is kept')\n"
    )
    weights = checkout.folder / "models/model.safetensors"
    weights.unlink()
    output = checkout.run(checkout.train_with(patch), code=1)
    assert "the loss is nan at epoch 2, batch 1 of 5" in output
    assert "freed memory is kept" in output
    assert "; models/model.safetensors holds epoch 1, the best so far" in output
    assert "Traceback" not in output
    load_model(weights, checkout.folder / "models/model.json")


def test_a_preemption_that_no_step_sees_still_fails_the_stage(checkout):
    """It comes in the last validation, for example."""
    patch = (
        "def end(training, checkpoint, live):\n"
        "    training.run_epoch()\n"
        "    training.stopping = 15\n"
        "stage.run_epochs = end\n"
    )
    weights = checkout.folder / "models/model.safetensors"
    weights.unlink()
    checkout.run(f"{checkout.train_with(patch)}; test $? -eq 143")
    assert not weights.exists()


def test_the_key_of_a_state_has_all_the_code_that_trains_and_no_other(checkout):
    model = {"model": "torchvision/resnet18", "channels": None, "hidden": None, "pretrained": False}
    checkout.params({"train": model})
    patch = (
        "def tell(files, *values):\n"
        "    print('\\n'.join(str(file) for file in files))\n"
        "    raise SystemExit\n"
        "stage.fingerprint = tell\n"
    )
    files = {Path(line).name for line in checkout.run(checkout.train_with(patch)).splitlines()}
    code = {Path(dep).name for dep in DVC["stages"]["train"]["deps"] if dep.endswith(".py")}
    assert code | {"images.npy", "split.csv"} <= files
    assert not {"report.py", "study.py", "explanation.py"} & files


def test_the_key_of_a_state_changes_with_each_param_that_bears_on_it_and_with_the_data(tmp_path):
    file = tmp_path / "images.npy"
    file.write_bytes(b"images")
    params = load_params(PROJECT / "params.yaml").model_dump()

    def key(changes, precision="float32"):
        changed = with_overrides(params, {"train.precision": precision} | changes)
        recipe = pick(Recipe, changed.train.model_copy(update={"lr": 0.1 if "train.lr" in changes else 0.3}))
        return configuration(changed, recipe, [file], torch.device("cpu"))

    same = key({})
    assert key({"train.launcher": "torchrun --nproc-per-node=2"}) == same
    assert key({"evaluate.bins": 5}) == same
    other = {"train.dropout": 0.5, "train.lr": 0.1, "train.epochs": 41, "train.seed": 1, "train.rotation": 6}
    other |= {"train.channels": [16, 32], "train.balance": 0.5, "preprocess.size": 96, "preprocess.crop": True}
    keys = {key({name: value}) for name, value in other.items()} | {key({}, precision="bfloat16")}
    assert len(keys | {same}) == len(other) + 2
    file.write_bytes(b"others")
    assert key({}) not in keys | {same}


def test_a_model_of_other_classes_is_refused(checkout):
    file = checkout.folder / "models/model.json"
    content = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(content | {"classes": content["classes"][::-1]}))
    output = checkout.run(DVC["stages"]["evaluate"]["cmd"], code=1)
    assert "error: the model knows the classes pituitary, notumor, meningioma, glioma, but" in output
    np.save(checkout.folder / "few.npy", np.zeros((3, 48, 48), np.uint8))
    output = checkout.run(DVC["stages"]["evaluate"]["cmd"].replace("data/images.npy", "few.npy"), code=1)
    assert "error: few.npy has 3 images but the split has" in output


def test_phantoms_with_a_table_of_other_patients_are_refused(checkout):
    checkout.params({"audit": {"patients": "~/braintumor/patients.csv"}})
    checkout.env["HOME"] = str(checkout.folder)
    output = checkout.run("dvc repro", code=255)
    assert f"error: audit.patients: {checkout.folder}/braintumor/patients.csv names none of the images" in output
    assert "Traceback" not in output


def test_unreadable_images_are_listed_and_too_many_are_an_error(checkout, tmp_path):
    make_folder(tmp_path / "mine", ["."], n=30)
    (tmp_path / "mine/cats/00.png").write_bytes(b"")
    checkout.params({"data": {"source": "folder", "folder": str(tmp_path / "mine")}, "audit": {"patients": None}})
    checkout.run("dvc repro audit")
    assert (checkout.folder / "data/quarantine.csv").read_text() == (
        "path,reason\nTraining/cats/00.png,empty file\n"
    )
    assert read_json(checkout, "metrics/data.json")["quarantined_images"] == 1
    for i in range(1, 4):
        (tmp_path / f"mine/cats/{i:02}.png").write_bytes(b"text")
    output = checkout.run("dvc repro --force --single-item download && dvc repro audit", code=255)
    assert "error: audit: 4 of 60 images cannot be read" in output


def imports(module):
    """Return the project's modules that a module imports, directly or through others."""
    file = PROJECT / f"{module.replace('.', '/')}.py"
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "braintumor":
            found |= {f"braintumor.{name.name}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("braintumor."):
            found.add(node.module)
    return found.union(*(imports(name) for name in found))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_calls_and_the_params_it_reads(stage):
    # errors and params change no out: what a param means stands in the code that is given it.
    code = imports(f"stages.{stage}") - {"braintumor.errors", "braintumor.params"}
    expected = {f"stages/{stage}.py"} | {f"{name.replace('.', '/')}.py" for name in code}
    deps = DVC["stages"][stage]["deps"]
    assert {dep for dep in deps if dep.endswith(".py")} == expected
    source = (PROJECT / f"stages/{stage}.py").read_text()
    sections = yaml.safe_load((PROJECT / "params.yaml").read_text())
    read = {name for name in sections if f'load_params(Path("params.yaml")).{name}' in source}
    read |= {name for name in sections if f"params.{name}." in source or f" = params.{name}\n" in source}
    if ", params)" in source:  # handed on whole
        read = set(sections)
    assert set(DVC["stages"][stage]["params"]) == read


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_stage_stands_in_its_command(stage):
    content = DVC["stages"][stage]
    outs = paths(stage, "outs", "metrics", "plots")
    ins = [dep for dep in content["deps"] if not dep.startswith(("stages/", "braintumor/"))]
    assert content["desc"]
    words = content["cmd"].split()
    # The report reads most of metrics and plots: its command names the folders.
    whole = {word for word in words if word in ("metrics", "plots")}
    named = [word for word in words if word.startswith(("data/", "metrics/", "plots/", "models/", "report/"))]
    inside = [path for path in ins if path.split("/")[0] in whole and path not in named]
    assert sorted(outs + ins) == sorted(named + inside)
    assert not whole or stage == "report"
