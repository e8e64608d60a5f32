"""The audit's numbers on the real dataset, where its zip is at hand."""

import json

import pandas as pd
import pytest

from braintumor.sources import copy_images
from stages.audit import main as audit
from tests.conftest import PROJECT

ZIPS = [PROJECT / "data/archive.zip", PROJECT.parent / "shared/data/brain-tumor-mri-dataset.zip"]
pytestmark = pytest.mark.skipif(
    not any(file.exists() for file in ZIPS), reason="needs the dataset's zip at data/archive.zip"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    archive = next(file for file in ZIPS if file.exists())
    copy_images(archive, folder / "raw", expected=7023)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)  # for params.yaml and the table of patients
        audit(
            raw=folder / "raw",
            manifest=folder / "manifest.csv",
            quarantine=folder / "quarantine.csv",
            metrics=folder / "data.json",
            classes=folder / "classes.csv",
            sizes=folder / "sizes.csv",
            overview=folder / "data.png",
            pictures=folder / "pictures",
        )
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "data.json").read_text())


@pytest.fixture(scope="module")
def tables(folder):
    return {name: pd.read_csv(folder / f"{name}.csv") for name in ("classes", "sizes")}


def test_classes_and_sizes_are_those_of_version_1(metrics, tables):
    classes = tables["classes"].pivot(index="folder", columns="class", values="images")
    assert classes.loc["Training"].to_dict() == {
        "glioma": 1321, "meningioma": 1339, "notumor": 1595, "pituitary": 1457,
    }  # fmt: skip
    assert classes.loc["Testing"].to_dict() == {"glioma": 300, "meningioma": 306, "notumor": 405, "pituitary": 300}
    sizes = tables["sizes"]
    training = sizes[sizes["folder"] == "Training"]
    assert (training["width"].min(), training["width"].max()) == (150, 1920)
    assert (training["height"].min(), training["height"].max()) == (168, 1446)
    assert ((sizes["width"] == 512) & (sizes["height"] == 512)).sum() == 4742


def test_counts_and_means_are_those_of_version_1(metrics):
    expected = {
        "training_images": 5712,
        "testing_images": 1311,
        "quarantined_images": 0,
        "training_width_mean": 451.56,
        "training_height_mean": 453.88,
        "testing_width_mean": 421.18,
        "testing_height_mean": 424.22,
    }
    assert {name: metrics[name] for name in expected} == expected


def test_copies_are_found(metrics):
    exact = {"identical_groups": 194, "identical_images": 491, "identical_testing_images": 103}
    assert {name: metrics[name] for name in exact} == exact
    assert metrics["contradictory_copy_groups"] == 4
    # How a decoder rounds moves a few.
    for name, count in {"distinct_images": 3599, "copied_testing_images": 993, "single_images": 1577}.items():
        assert metrics[name] == pytest.approx(count, rel=0.005)


def test_patients_are_known(metrics):
    expected = {
        "patients": 209,
        "images_of_known_patients": 4750,
        "patients_in_testing": 188,
        "patients_in_both": 188,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["groups"] == pytest.approx(752, rel=0.005)
    # By class there are 65 + 214 + 397 + 78 = 754 groups, so two are counted in two classes.
    assert metrics["contradictory_groups"] == 2
