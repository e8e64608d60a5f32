import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from braintumor.errors import UserError
from braintumor.manifest import (
    add_groups,
    check_classes,
    count_classes,
    inspect_images,
    read_patients,
    summarise,
)
from braintumor.tables import list_images, read_table, write_table


def draw(seed, size=(40, 40)):
    cells = np.random.default_rng(seed).integers(0, 200, (8, 8), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def raw(tmp_path):
    """Four pictures: one mirrored, one twice by the byte and under two classes, two alone, one broken."""
    for folder in ("Training/a", "Training/b", "Testing/a", "Testing/b", "masks/Training"):
        (tmp_path / folder).mkdir(parents=True)
    draw(0).save(tmp_path / "Training/a/0.png")
    draw(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "Testing/a/0m.png")
    draw(1, (40, 50)).convert("RGB").save(tmp_path / "Training/b/1.png")
    (tmp_path / "Testing/a/1.png").write_bytes((tmp_path / "Training/b/1.png").read_bytes())
    draw(2).save(tmp_path / "Testing/b/2.png")
    draw(3).save(tmp_path / "Training/a/3.png")
    (tmp_path / "Training/a/broken.png").write_bytes(b"x")
    (tmp_path / "masks/Training/0.png").write_bytes(b"x")
    return tmp_path


PATHS = ["Testing/a/0m.png", "Testing/a/1.png", "Testing/b/2.png", "Training/a/0.png", "Training/a/3.png"]


@pytest.fixture
def table(raw):
    rows, signatures, _ = inspect_images(raw, list_images(raw), 10**6, 2)
    patients = pd.Series([None, None, "7", None, "7", "8"], dtype=object)
    return add_groups(rows, signatures, patients, 0.99)


def test_images_are_listed_by_name_and_only_from_the_two_folders(raw):
    assert list_images(raw) == [*PATHS, "Training/a/broken.png", "Training/b/1.png"]


def test_each_image_has_a_row_and_the_unreadable_a_reason(raw):
    rows, signatures, quarantine = inspect_images(raw, list_images(raw), 10**6, 2)
    assert rows["path"].tolist() == [*PATHS, "Training/b/1.png"]
    assert signatures.shape == (6, 1024)
    assert quarantine.values.tolist() == [["Training/a/broken.png", "not an image"]]
    row = rows.set_index("path").loc["Training/b/1.png"]
    content = (raw / "Training/b/1.png").read_bytes()
    assert (row["folder"], row["class"], row["width"], row["height"]) == ("Training", "b", 40, 50)
    assert (row["mode"], row["format"], row["bytes"]) == ("RGB", "PNG", len(content))
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    grey = np.asarray(Image.open(raw / "Training/b/1.png").convert("L"))
    assert row["mean"] == pytest.approx(grey.mean(), abs=1e-3)
    assert row["deviation"] == pytest.approx(grey.std(), abs=1e-3)


def test_images_over_the_limit_are_quarantined(raw):
    rows, _, quarantine = inspect_images(raw, list_images(raw), 1600, 1)
    assert "Training/b/1.png" not in rows["path"].tolist()
    assert "Training/b/1.png,40 x 50 is over the limit of 1600 pixels" in quarantine.to_csv(index=False)


def test_groups_join_copies_and_patients(table):
    # Copies: 0m with 0, 1 with 1. Patient 7 has 2 and 3.
    assert table["copy_group"].tolist() == [0, 1, 2, 0, 3, 1]
    assert table["group"].tolist() == [0, 1, 2, 0, 2, 1]
    assert table["nearest"].tolist()[:2] == ["Training/a/0.png", "Training/b/1.png"]
    assert table["similarity"].tolist()[:2] == [1.0, 1.0]


def test_the_summary_counts_what_the_manifest_says(table):
    summary = summarise(table, quarantined=1)
    expected = {
        "images": 6,
        "quarantined_images": 1,
        "training_images": 3,
        "training_height_mean": 43.33,
        "identical_groups": 1,
        "identical_images": 2,
        "identical_testing_images": 1,
        "distinct_images": 4,
        "single_images": 2,
        "largest_copy_group": 2,
        "copied_testing_images": 2,
        "contradictory_copy_groups": 1,
        "patients": 2,
        "images_of_known_patients": 3,
        "patients_in_testing": 1,
        "patients_in_both": 1,
        "groups": 3,
        "contradictory_groups": 2,
    }
    assert {name: summary[name] for name in expected} == expected
    assert all(isinstance(value, int | float) for value in summary.values())


def test_without_patients_a_group_is_a_group_of_copies(raw):
    rows, signatures, _ = inspect_images(raw, list_images(raw), 10**6, 2)
    table = add_groups(rows, signatures, None, 0.99)
    assert table["group"].tolist() == table["copy_group"].tolist()
    assert summarise(table, 0)["patients"] == 0


def test_bars_are_counted_per_folder_and_class(table):
    assert count_classes(table)[["label", "images"]].values.tolist() == [
        ["Testing a", 2],
        ["Testing b", 1],
        ["Training a", 2],
        ["Training b", 1],
    ]


def test_a_manifest_comes_back_as_it_was_written(table, tmp_path):
    table.loc[0, "class"] = "NA"
    write_table(table, tmp_path / "manifest.csv")
    again = read_table(tmp_path / "manifest.csv")
    assert again["class"].tolist()[0] == "NA"
    assert again["patient"].isna().tolist() == table["patient"].isna().tolist()
    assert again["patient"].dropna().tolist() == ["7", "7", "8"]
    known = [name for name in table if name != "patient"]
    pd.testing.assert_frame_equal(again[known], table[known], check_dtype=False)


@pytest.mark.parametrize("names", [["low", "high_grade"], ["a", "right"], ["glioma", "glioma_high"]])
def test_a_class_that_is_called_as_a_score_is_an_error(names):
    with pytest.raises(UserError, match=r"a class cannot be called (low|right|glioma_high),.*rename its folder"):
        check_classes(names)
    check_classes(["glioma", "low_grade", "high_grade", "meningioma_low"])


def test_patients_are_text_in_the_order_of_the_images(tmp_path):
    file = tmp_path / "patients.csv"
    file.write_text("# source: made up\npath,patient,more\nb.png,007,x\na.png,12,y\n")
    assert read_patients(file, ["a.png", "b.png", "c.png"]).tolist()[:2] == ["12", "007"]
    assert read_patients(file, ["c.png", "b.png", "a.png"]).isna().tolist() == [True, False, False]
    file.write_text("path,patient\nimg#1.png, P#12 \n b.png ,NA\nc.png,\n")
    patients = read_patients(file, ["img#1.png", "b.png", "c.png"])
    assert patients.tolist()[:2] == ["P#12", "NA"]
    assert patients.isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,person\na.png,1\n", "has no column patient"),
        ("path,patient\na.png,1\na.png,2\n", "names a.png twice"),
        ("path,patient\nz.png,1\n", "names none of the images.*null"),
        ("path,patient\na.png,1\na.PNG,1\nz.png,2\n", "names 2 images that there are not, first a.PNG"),
        ("", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_table_of_patients_that_does_not_fit_is_an_error(tmp_path, content, message):
    file = tmp_path / "patients.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_patients(file, ["a.png"])
