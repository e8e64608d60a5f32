"""The audit's numbers on the real dataset, where its zip is at hand."""

import json
from pathlib import Path

import pytest

from braintumor.sources import copy_images
from stages.audit import main as audit
from tests.conftest import PROJECT

ZIPS = [PROJECT / "data/archive.zip", PROJECT.parent / "shared/data/brain-tumor-mri-dataset.zip"]
pytestmark = pytest.mark.skipif(
    not any(file.exists() for file in ZIPS), reason="needs the dataset's zip at data/archive.zip"
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
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
    return json.loads(Path(folder / "data.json").read_text())


def test_counts_and_sizes_are_those_of_version_1(metrics):
    expected = {
        "training_images": 5712,
        "testing_images": 1311,
        "training_images_glioma": 1321,
        "training_images_meningioma": 1339,
        "training_images_notumor": 1595,
        "training_images_pituitary": 1457,
        "testing_images_notumor": 405,
        "quarantined_images": 0,
        "training_width_min": 150,
        "training_width_max": 1920,
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
