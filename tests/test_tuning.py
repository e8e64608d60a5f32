from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from braintumor.errors import UserError
from braintumor.models import Architecture
from braintumor.params import load_params, with_overrides
from scripts import seeds, tuning
from tests.conftest import PROJECT

PARAMS = load_params(PROJECT / "params.yaml").model_dump()


def test_every_variant_is_one_that_the_params_allow():
    content = yaml.safe_load((PROJECT / "tuning.yaml").read_text())
    base = with_overrides(PARAMS, content["base"]).model_dump()
    for variant in content["variants"].values():
        overrides = {name: value for name, value in (variant or {}).items() if name not in ("share", "cut")}
        changed = with_overrides(base, overrides)
        for name, value in overrides.items():
            section, param = name.split(".")
            assert getattr(getattr(changed, section), param) == value
    assert {*content["learning_curve"], *content["errors"]} <= set(content["variants"])
    assert len(tuning.read_results(tuning.changes_of(content)))  # an error where a row is of other settings


def test_a_misspelt_override_is_an_error():
    for name in ("train.droput", "trian.dropout", "dropout"):
        with pytest.raises(ValueError, match=f"{name}: no such param"):
            with_overrides(PARAMS, {name: 0.5})


def test_every_variant_is_checked_before_the_first_one_trains():
    content = {
        "base": {},
        "seeds": [1, 2],
        "variants": {"a": None, "b": {"share": 0.5, "train.dropout": 0.5}, "c": {"cut": 3}},
        "learning_curve": ["b", "a"],
        "errors": ["a"],
    }
    runs = tuning.read_variants(content)
    assert list(runs) == [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1), ("c", 2)]
    params, *others = runs["b", 2]
    assert [params.train.dropout, params.train.seed, *others] == [0.5, 2, 1, 0.5]
    assert runs["c", 1][1:] == (3, 1.0)
    for wrong, message in (
        ({"variants": {"c": {"train.dropout": 2}}}, "c: .*less than 1"),
        ({"variants": {"c": {"cut": False}}}, "c: cut: False is no whole number"),
        ({"variants": {"c": {"share": 2}}}, "c: share: 2 is not over 0 and at most 1"),
        ({"errors": ["d"]}, "d: no variant, but on the page"),
        ({"base": {"train.droput": 0}}, "base: train.droput: no such param"),
    ):
        with pytest.raises(UserError, match=message):
            tuning.read_variants(content | wrong)
    with pytest.raises(UserError, match="lacks seeds"):
        tuning.read_variants({"base": {}, "variants": {"a": None}})


def test_a_share_of_the_groups_is_that_of_each_class_and_touches_no_other_subset():
    table = pd.DataFrame(
        {"class": ["a"] * 40 + ["b"] * 20, "group": [i // 2 for i in range(60)], "subset": "train"}
    )
    table.loc[[0, 1], "subset"], table.loc[[2, 3], "subset"] = "validation", "test"
    left = tuning.leave_out(table, 0.5, seed=0)
    kept = left[left["subset"] == "train"]
    assert kept.groupby("class")["group"].nunique().to_dict() == {"a": 9, "b": 5}
    assert (kept.groupby("group").size() == 2).all()  # whole groups
    assert left["subset"].iloc[:4].tolist() == ["validation"] * 2 + ["test"] * 2
    assert tuning.leave_out(table, 1.0, seed=0).equals(table)
    assert not tuning.leave_out(table, 0.5, seed=1).equals(left)


def test_one_training_is_validated_by_patient_by_copy_and_image_by_image():
    # 60 people of two copied images and a single one each.
    rows = [(i // 5, i // 5 * 3 + i % 5 // 2) for i in range(300)]
    table = pd.DataFrame(rows, columns=["group", "copy_group"]).assign(subset="train")
    table["class"] = np.where(table["group"] % 2, "a", "b")
    table.loc[:49, "subset"] = "test"
    split = tuning.three_ways(table, cut=1)
    trained = split[split["subset"] == "train"]
    parts = dict(list(split[split["subset"] == "validation"].groupby("part")))
    assert not set(parts["patient"]["group"]) & set(split[split["part"] != "patient"]["group"])
    assert not set(parts["copy"]["copy_group"]) & {*trained["copy_group"], *parts["random"]["copy_group"]}
    assert set(parts["copy"]["group"]) & set(trained["group"])
    assert set(parts["random"]["copy_group"]) & set(trained["copy_group"])
    # Of 250 images a quarter; of the rest a sixth; of that rest an eighth.
    sizes = {name: len(part) for name, part in parts.items()} | {"train": len(trained)}
    assert sizes == pytest.approx({"patient": 62, "copy": 31, "random": 20, "train": 137}, abs=4)
    assert (split["subset"][:50] == "unused").all()
    people = [set(tuning.three_ways(table, cut).query("part == 'patient'")["group"]) for cut in (1, 1, 2)]
    assert people[0] == people[1] != people[2]


def test_the_three_parts_stand_side_by_side():
    rows = [("b", "patient", 1, 0.9), ("b", "random", 1, 1.0), ("b", "copy", 1, 0.8), ("a", "patient", 1, 0.7)]
    rows += [("a", "random", 1, 0.5), ("a", "copy", 1, 0.6), ("a", "patient", 2, 0.8), ("a", "copy", 2, 0.6)]
    table = pd.DataFrame([*rows, ("a", "random", 2, 0.7)], columns=["name", "part", "seed", "distinct_accuracy"])
    table = table.assign(distinct_loss=0.25, train_accuracy=0.95, parameters=1234, epochs=40)
    lines = tuning.summary(table).splitlines()
    assert lines[2] == "| b | 1 | 90.0% (0.250) | 80.0% (0.250) | 100.0% (0.250) | 95.0% | 1,234 | 40 |"
    # By hand: the deviation of 70 and 80 with n - 1 is 7.07, that of 50 and 70 is 14.14.
    assert lines[3].startswith("| a | 2 | 75.0% ± 7.1 (0.250) | 60.0% ± 0.0 (0.250) | 60.0% ± 14.1 (0.250) | ")


def test_what_is_wrong_is_counted_in_distinct_images_as_the_mean_over_seeds():
    # Two copies of one image, one of them wrong, are half of a distinct image that is wrong.
    rows = [("a", "a", 0), ("a", "b", 0), ("a", "a", 1), ("b", "a", 2), ("b", "b", 3)]
    predictions = pd.DataFrame(rows, columns=["class", "prediction", "copy_group"])
    predictions = predictions.assign(path="x", part="patient", copied=False)
    mixed = pd.DataFrame(
        {"class": ["a", "a"], "prediction": ["a", "b"], "copy_group": [4, 5], "copied": [True, False]}
    )
    first = tuning.confusions(pd.concat([predictions, mixed.assign(path="x", part="random")], ignore_index=True))
    found = first.set_index(["part", "class", "prediction", "copied"])
    assert found.loc[("patient", "a", "b", False)].tolist() == [1, 0.5]
    assert found.loc[("patient", "a", "a", False)].tolist() == [2, 1.5]
    assert (found["images"].sum(), found["distinct"].sum()) == (7, 6)
    second = tuning.confusions(predictions.assign(prediction=predictions["class"]))
    counted = pd.concat([table.assign(name="x", seed=seed) for seed, table in ((1, first), (2, second))])
    counted = pd.concat([counted, first.assign(name="y", seed=1)])
    lines = [line.strip("| ").split(" | ") for line in tuning.summary_of_errors(counted, ["y", "x"]).splitlines()]
    assert lines[2][1:] == ["y", "4", "1.5 (37.5%)", "b called a 1.0; a called b 0.5"]
    assert lines[3][1:] == ["x", "4", "0.8 (18.8%)", "b called a 0.5; a called b 0.2"]
    parts = [f"{where} a copy in training" for where in ("by patient, without", "image by image, without")]
    assert [line[0] for line in lines[2:]] == [parts[0]] * 2 + [parts[1]] * 2 + [
        parts[1].replace("without", "with")
    ] * 2


def test_what_has_been_trained_is_written_once_in_the_order_of_the_variants(tmp_path, monkeypatch):
    for name, file in (
        ("RESULTS", "tuning.csv"), ("CONFUSIONS", "confusions.csv"), ("PAGE", "page.md"), ("CURVE", "curve.png"),
        ("OVERVIEW", "tuning.png"),
    ):  # fmt: skip
        monkeypatch.setattr(tuning, name, tmp_path / file)
    marks = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("tuning", "tuning-errors"))
    tuning.PAGE.write_text(marks)
    content = {
        "variants": {"base": None, "half": {"share": 0.5}, "other": {"cut": 2}},
        "learning_curve": ["half", "base"],
        "errors": ["base"],
    }
    changes = tuning.changes_of(content)
    assert changes == {"base": "{}", "half": '{"share": 0.5}', "other": '{"cut": 2}'}
    counted = pd.DataFrame([("base", 1, "patient", "a", "b", False, 2, 1.5)])
    counted.columns = ["name", "seed", "part", "class", "prediction", "copied", "images", "distinct"]
    for name, seed, patients in (("other", 1, 8), ("half", 1, 4), ("base", 1, 8), ("base", 1, 8)):  # one twice
        rows = [
            tuning.Result(
                name, changes[name], part, seed, 0.9, 0.3, 0.9, 1.0, patients, 50, 1234, 20, "cpu", "abc"
            )
            for part in tuning.PARTS
        ]
        tuning.append(pd.DataFrame(rows), tuning.RESULTS)
        tuning.append(counted.assign(name=name), tuning.CONFUSIONS)
    tuning.write_pages(content)
    page = tuning.PAGE.read_text().splitlines()
    assert [line.split(" | ")[:2] for line in page if line.endswith("| 20 |")] == [
        ["| base", "1"], ["| half", "1"], ["| other", "1"],
    ]  # fmt: skip
    assert "| by patient, without a copy in training | base | 2 | 1.5 (100.0%) | a called b 1.5 |" in page
    for file in (tuning.CURVE, tuning.OVERVIEW):
        assert np.asarray(Image.open(file).convert("L")).std() > 10
    # A row of settings that are not those of its name now stands for nothing.
    for variants in ({"half": {"share": 0.25}}, {"third": {"share": 0.5}}):
        with pytest.raises(UserError, match=r"half is no variant of .*, or changes something else there"):
            tuning.read_results(tuning.changes_of({"variants": {"base": None, "other": {"cut": 2}} | variants}))
    tuning.RESULTS.write_text("name,part\nbase,patient\n")
    with pytest.raises(UserError, match=r"tuning.csv: its columns are not name, changes, part"):
        tuning.read_results(changes)


def test_the_curve_and_the_overview_show_every_part_and_only_their_variants():
    rows = [
        (name, part, seed, value + 0.01 * place, patients)
        for name, value, patients in (("base", 0.9, 8), ("half", 0.8, 4), ("flips", 0.85, 8))
        for place, part in enumerate(tuning.PARTS)
        for seed in (1, 2)
    ]
    table = pd.DataFrame(rows, columns=["name", "part", "seed", "distinct_accuracy", "train_patients"])
    (axes,) = tuning.learning_curve(table, ["half", "base"]).axes
    assert [line.get_ydata().tolist() for line in axes.lines[::2]] == [
        pytest.approx([80, 90]), pytest.approx([81, 91]), pytest.approx([82, 92]),
    ]  # fmt: skip
    panels = tuning.overview(table, ["base", "flips"]).axes
    assert [panel.get_title() for panel in panels] == ["by patient", "by copy", "image by image"]
    for place, panel in enumerate(panels):
        mean, dots = panel.lines
        assert mean.get_xdata() == pytest.approx([90 + place] * 2)
        assert dots.get_xdata() == pytest.approx([90 + place, 90 + place, 85 + place, 85 + place])


def test_a_variant_is_the_committed_recipe_on_one_thread_and_the_base_has_half_of_its_epochs():
    content = yaml.safe_load((PROJECT / "tuning.yaml").read_text())
    recipe = content["variants"]["Muon, stride 16, 40 epochs"]
    base, variant = (with_overrides(PARAMS, content["base"] | changes) for changes in ({}, recipe))
    # null stands for the network's own channels.
    expected = with_overrides(PARAMS, {"train.threads": 1, "train.channels": base.train.channels})
    assert variant == expected
    default = Architecture.of(load_params(PROJECT / "params.yaml").train, 160, 4)
    assert Architecture.of(variant.train, 160, 4) == default
    assert base.train.epochs == variant.train.epochs // 2


def test_the_table_has_the_columns_of_a_result():
    columns = [field.name for field in fields(tuning.Result)]
    assert list(pd.read_csv(PROJECT / "metrics/tuning.csv").columns) == columns


def test_the_seeds_table_has_five_rows_a_protocol_one_of_each_first():
    rows = seeds.wanted(42)
    assert len(set(rows)) == len(rows) == 20
    assert {row[:2] for row in rows[:4]} == {row[:2] for row in rows}
    for group_by in ("patient", "copy"):
        assert [row[2:] for row in rows if row[:2] == ("grouped", group_by)] == [(42, fold) for fold in range(5)]
    for protocol, group_by in (("official", "patient"), ("copy_free", "patient")):
        assert sorted(seed for p, g, seed, _ in rows if (p, g) == (protocol, group_by)) == [42, 43, 44, 45, 46]


def test_the_sum_of_the_seeds_is_mean_and_deviation():
    table = pd.DataFrame(
        [
            ["official", "patient", s, 0, a, 0.9, c, 0.8, 40, 9, "x", "y"]
            for s, a, c in ((1, 0.9, 0.5), (2, 1.0, 0.7))
        ],
        columns=seeds.COLUMNS,
    )
    row = seeds.summary(table).splitlines()[2]
    # By hand: the deviation of 90 and 100 with n - 1 is 7.07, that of 50 and 70 is 14.14.
    assert row == (
        "| `official`, seeds | 2 of 5 | 95.00% ± 7.07 | 90.00% ± 0.00 | 60.00% ± 14.14 | 80.00% ± 0.00 |"
    )


def test_the_pages_have_the_places_that_the_scripts_fill():
    page = (PROJECT / "docs/training.md").read_text()
    for name in ("seeds", "folds", "tuning", "tuning-errors"):
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1


def test_a_row_of_the_seeds_table_depends_on_what_trains_and_splits_and_not_on_what_explains():
    code = seeds.code()
    assert {"stages/train.py", "braintumor/models.py", "braintumor/split.py", "braintumor/copies.py"} <= set(code)
    assert not {"braintumor/scores.py", "stages/evaluate.py"} & set(code)
    text = (PROJECT / "params.yaml").read_text()
    assert seeds.settings(text) == seeds.settings(text.replace("evaluate:", "evaluate:\n  new: 1"))
    assert seeds.settings(text) != seeds.settings(text.replace("epochs: 40", "epochs: 41"))
