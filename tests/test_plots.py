import numpy as np
import pandas as pd
import pytest
from PIL import Image

from braintumor import plots
from braintumor.sheets import audit_sheets


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for i, (folder, label, group) in enumerate(
        [
            ("Training", "a", 0),
            ("Training", "b", 1),
            ("Testing", "a", 0),
            ("Testing", "b", 0),
            ("Training", "b", 2),
        ]
    ):
        path = f"{folder}/{label}/{i}.png"
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (30 + i, 20), 100 + i).save(tmp_path / path)
        rows.append((path, folder, label, 30 + i, 20, "L", group))
    return pd.DataFrame(rows, columns=["path", "folder", "class", "width", "height", "mode", "copy_group"])


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts}


def test_the_overview_counts_each_class_in_each_folder(manifest):
    figure = plots.overview(manifest)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [1, 2, 1, 1]  # Training a, b; Testing a, b
    points = np.concatenate([part.get_offsets() for part in figure.axes[1].collections])
    assert sorted(points[:, 0]) == [30, 31, 32, 33, 34]


def test_the_confusion_matrix_shows_counts_and_shares():
    figure = plots.confusion(pd.Series(["a", "a", "b", "a"]), pd.Series(["a", "b", "b", "a"]))
    assert texts(figure) == {"2\n66.7%", "1\n33.3%", "0\n0.0%", "1\n100.0%"}
    assert figure.axes[0].get_title() == "3 of 4 test images right"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_the_evaluation_shows_every_subset_that_has_images_and_every_baseline():
    row = {"accuracy": 0.9, "low": 0.8, "high": 0.95}
    subsets = pd.DataFrame(
        [
            {"subset": "all", "units": 40} | row,
            {"subset": "copy_free", "units": 0},
            {"subset": "patients", "units": 7} | row,
        ]
    )
    baselines = pd.DataFrame(
        [{"baseline": "size"} | row, {"baseline": "network", "accuracy": 1, "low": 0.9, "high": 1}]
    )
    reliability = pd.DataFrame([{"calibration": when, "confidence": 0.7} | row for when in ("before", "after")])
    risk = pd.DataFrame({"coverage": [0.5, 1], "risk": [0, 0.1]})
    figure = plots.evaluation(subsets, baselines, reliability, risk)
    first, second, third, fourth = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["all (40)", "patients (7)"]
    assert [text.get_text() for text in second.texts] == ["90.0%", "100.0%"]
    assert [text.get_text() for text in third.get_legend().get_texts()] == [
        "before calibration",
        "after calibration",
    ]
    assert fourth.lines[0].get_ydata().tolist() == [0, 0.1]


def test_sheets_show_samples_copies_and_contradictions(manifest, tmp_path):
    sheets = dict(audit_sheets(manifest, tmp_path))
    assert list(sheets) == ["samples_a", "samples_b", "copies", "contradictions"]
    captions = {text.splitlines()[0] for text in texts(sheets["contradictions"])}
    assert captions == {"0.png", "2.png", "3.png"}
    assert sheets["contradictions"].axes[0].get_title(loc="left") == "3 copies, a and b"


def test_without_copies_there_is_no_sheet_of_them(manifest, tmp_path):
    manifest["copy_group"] = range(5)
    assert list(dict(audit_sheets(manifest, tmp_path))) == ["samples_a", "samples_b"]


def test_the_same_figure_gives_the_same_bytes(tmp_path, manifest):
    for name in ("a", "b"):
        plots.save(plots.overview(manifest), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    plots.save(plots.sheet([[(np.zeros((4, 4), np.uint8), "x$^$.png")]], "$\\frac$"), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
