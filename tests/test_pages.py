"""The figures in the pages are those of the committed run and of the study."""

import pandas as pd
import pytest
import yaml

from braintumor.pages import fill, table
from scripts import pages
from tests.conftest import PROJECT

EVALUATION = (PROJECT / "docs/evaluation.md").read_text()
README = (PROJECT / "README.md").read_text()
TABLES = pages.run_tables(pages.Run())


def test_a_table_stands_between_its_marks_and_the_rest_stays():
    page = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n<!-- b -->\n<!-- /b -->\n"
    filled = fill(page, "a", table(["x", "y"], [["1", r"\2"]]))
    assert filled == page.replace("old", "| x | y |\n| --- | --- |\n| 1 | \\2 |")
    assert fill(page, "c", "new") == page


def test_a_part_of_the_test_set_is_written_with_its_interval_or_as_all_or_none():
    row = {"subset": "copied", "accuracy": 0.994, "low": 0.98695, "high": 0.9972, "images": 993, "units": 993}
    assert pages.subset_cell(row, 1311) == "99.4% [98.7, 99.7] of 993"
    assert pages.subset_cell(row, 993) == "all of them"
    assert pages.subset_cell(row | {"images": 0}, 993) == "none"
    distinct = row | {"subset": "distinct", "units": 1234}
    assert pages.subset_cell(distinct, 993) == "99.4% [98.7, 99.7] of 1,234"


@pytest.mark.parametrize("name", TABLES)
def test_the_evaluations_page_has_the_committed_run(name):
    assert f"<!-- {name} -->\n{TABLES[name]}\n<!-- /{name} -->" in EVALUATION


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("evaluation", "subsets"),
        ("evaluation", "baselines"),
        ("explanation", "where"),
        ("explanation", "shuffled"),
    ],
)
def test_the_other_tables_are_filled(page, name):
    assert f"<!-- {name} -->\n|" in (PROJECT / f"docs/{page}.md").read_text()


def test_the_first_columns_are_those_of_the_committed_run():
    subsets, baselines = (pages.Run().rows(name) for name in ("subsets", "baselines"))
    images = subsets["all"]["images"]
    for name, text in pages.SUBSETS.items():
        assert f"| {text} | {pages.subset_cell(subsets[name], images)} |" in EVALUATION
    for name, text in pages.BASELINES.items():
        assert f"| {text} | {pages.of_accuracy(baselines[name])} |" in EVALUATION


def test_the_readme_has_the_studys_ladder():
    assert f"<!-- ladder -->\n{pages.ladder_table()}\n<!-- /ladder -->" in README


def test_what_the_ladder_calls_the_default_network_is_that_of_the_params():
    recipe = yaml.safe_load((PROJECT / "study.yaml").read_text())["settings"]["muon"]
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert recipe == {f"train.{name}": params["train"][name] for name in ("model", "optimizer")}


def test_the_ladder_has_each_rung_and_says_what_is_missing(tmp_path, monkeypatch):
    rows = [
        ["official", "muon", "all test images", 1, 0.986, 0.978, 0.991],
        ["official", "cnn3", "all test images", 5, 0.9, 0.88, 0.92],
    ]
    columns = ["rung", "recipe", "measured_on", "repeats", "mean", "low", "high"]
    (tmp_path / "plots/study").mkdir(parents=True)
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "plots/study/ladder.csv", index=False)
    monkeypatch.setattr(pages, "PROJECT", tmp_path)
    lines = pages.ladder_table().splitlines()
    assert len(lines) == 2 + 5
    official = next(line for line in lines if "`official`" in line)
    assert "98.6% [97.8, 99.1]" in official and "90.0% [88.0, 92.0] (5 runs)" in official
    assert official.count(pages.ABSENT) == 2
