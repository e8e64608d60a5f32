"""What the study of study.yaml runs, how it is told apart, and what its tables come to."""

import json
import os
import re
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.stats.api as sms
import yaml

from braintumor import params, provenance, study, study_tables
from braintumor.errors import UserError
from braintumor.params import with_overrides
from braintumor.results import read_scores
from braintumor.tables import write_table
from tests.conftest import PROJECT

PAGE = "<!-- ladder -->\n<!-- /ladder -->\n<!-- ladder-classes -->\n<!-- /ladder-classes -->\n"
CONTENT = yaml.safe_load((PROJECT / "params.yaml").read_text())


def write(tmp_path, experiments):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"parts": {"first": {"cut": "all", "experiments": experiments}}}))
    return file


def test_rows_come_round_by_round_and_each_has_its_value(tmp_path):
    file = write(
        tmp_path,
        [
            {"name": "a", "overrides": {"train.lr": 0.1}, "vary": {"train.seed": [1, 2]}},
            {"name": "b", "cut": "half"},
        ],
    )
    rows = study.read_study(file, CONTENT)
    assert [(row.name, row.entry, row.cut, row.overrides) for row in rows] == [
        ("a-seed-1", "a", "all", {"train.lr": 0.1, "train.seed": 1}),
        ("b", "b", "half", {}),
        ("a-seed-2", "a", "all", {"train.lr": 0.1, "train.seed": 2}),
    ]


def test_repetitions_come_after_all_parts(tmp_path):
    parts = {
        "first": [
            {"name": "a", "repeat": {"train.seed": [1, 2, 3]}},
            {"name": "b", "repeat": {"split.fold": [0, 1]}},
        ],
        "second": [{"name": "c", "vary": {"train.dropout": [0.1, 0.2]}}],
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"parts": {part: {"experiments": rows} for part, rows in parts.items()}}))
    rows = [row.name for row in study.read_study(file, CONTENT)]
    once = ["a-seed-1", "b-fold-0", "c-dropout-0.1", "c-dropout-0.2"]
    assert rows == [*once, "a-seed-2", "b-fold-1", "a-seed-3"]


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ([{"name": "a", "overrides": {"train.droput": 0.1}}], r"a: .*droput"),
        ([{"name": "a", "overrides": {"train": 0.1}}], "a: train: no such param"),
        ([{"name": "a", "vary": {"train.dropout": [0.1], "train.seed": [1]}}], "a varies 2 params"),
        ([{"nam": "a"}], "needs parts with experiments, each with a name"),
        (["a"], "needs parts with experiments, each with a name"),
        ([{"name": "a", "vary": {"train.dropout": [0.1, 1.5]}}], r"a-dropout-1\.5: .*less than 1"),
        ([{"name": "a"}, {"name": "a"}], "named twice: a"),
        ([{"name": "a", "vary": {"train.dropout": [0.1]}, "repeat": {"train.seed": [1]}}], "both vary and repeat"),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path, experiments, message):
    with pytest.raises(UserError, match=message) as caught:
        study.read_study(write(tmp_path, experiments), CONTENT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("a: [", "is not YAML"), ("- a", "no settings by name"), ("a: 1", "needs parts")],
)
def test_a_file_that_is_no_study_is_one_line(tmp_path, text, message):
    file = tmp_path / "study.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        study.read_study(file, CONTENT)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["study.yaml", "study.demo.yaml"])
def test_the_projects_studies_can_be_run_and_told_in_their_page(name):
    rows = study.read_study(PROJECT / name, CONTENT)
    page = (PROJECT / "docs/study.md").read_text()
    for part in {row.part for row in rows}:
        assert page.count(f"<!-- {part} -->\n") == page.count(f"<!-- /{part} -->\n") == 1
    described = yaml.safe_load((PROJECT / name).read_text())["parts"]
    assert all(part["question"] for part in described.values())


def test_the_ladder_comes_first_with_five_rows_a_rung_for_each_network():
    rows = study.read_study(PROJECT / "study.yaml", CONTENT)
    ladder = [row for row in rows if row.part == "ladder"]
    assert rows[:15] == ladder[:15]
    assert len({row.entry for row in rows[:15]}) == 15
    kinds = {}
    for row in ladder:
        params = study.with_overrides(CONTENT, row.overrides)
        kind = params.train.model, params.split.protocol, params.split.group_by
        kinds.setdefault(kind, set()).add((params.train.seed, params.split.fold))
    networks = "resnet", "resnet_stride16", "cnn3"
    assert set(kinds) == {(model, *rung) for model in networks for rung in study_tables.RUNGS}
    assert {len(repeats) for repeats in kinds.values()} == {5}


@pytest.fixture
def two_commits(tmp_path, monkeypatch):
    """A repository whose second commit words one file of code anew: its hashes, old and new."""
    people = {f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for name, value in people.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    forget()
    study.git("init", "-q")
    (tmp_path / "braintumor").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((PROJECT / name).read_text())
    for text in ("old", "new"):
        (tmp_path / "braintumor/training.py").write_text(text)
        study.git("add", ".")
        study.git("commit", "-qm", text)
    yield [study.git("rev-parse", f"{commit}:braintumor/training.py").strip() for commit in ("HEAD^", "HEAD")]
    forget()


def forget():
    """Let a study read its file and git's commits anew."""
    study.committed.cache_clear()
    study.read_same_results.cache_clear()


def write_same(**same):
    study.STUDY.write_text(yaml.safe_dump({"parts": {}, "same_results": same}))


def test_rows_of_other_code_are_stale(two_commits):
    assert study.recipe_of("HEAD") != study.recipe_of("HEAD^")
    assert study.recipe_of("HEAD") == study.recipe_of("HEAD", {})
    assert study.recipe_of("HEAD", {"train.dropout": 0.1}) != study.recipe_of("HEAD")


def test_rows_of_code_that_gives_the_same_results_are_not(two_commits):
    old, new = two_commits
    before = study.recipe_of("HEAD^")
    forget()
    write_same(**{new: "a" * 40, "a" * 40: old})  # by way of one between
    assert study.recipe_of("HEAD") == study.recipe_of("HEAD^") == before
    assert study.recipe_of("HEAD", {"train.dropout": 0.1}) == study.recipe_of("HEAD^", {"train.dropout": 0.1})


def test_a_file_that_came_later_and_that_no_older_row_needs_makes_no_row_stale(two_commits, tmp_path):
    (tmp_path / "braintumor/muon.py").write_text("new")
    study.git("add", "braintumor")
    study.git("commit", "-qm", "another file")
    later = study.git("rev-parse", "HEAD:braintumor/muon.py").strip()
    assert study.recipe_of("HEAD") != study.recipe_of("HEAD^")
    forget()
    write_same(**{later: None})
    assert study.recipe_of("HEAD") == study.recipe_of("HEAD^") != study.recipe_of("HEAD^^")


def test_same_results_may_be_empty_and_are_no_list(two_commits):
    study.STUDY.write_text("same_results:")
    assert study.read_same_results(study.STUDY) == {}
    forget()
    study.STUDY.write_text("same_results: [a]")
    with pytest.raises(UserError, match=r"same_results: .* no list of hashes"):
        study.read_same_results(study.STUDY)


@pytest.mark.parametrize("content", ["747d6cd4", 10**39, "braintumor/training.py"])
def test_same_results_are_of_whole_hashes(two_commits, content):
    write_same(**{two_commits[1]: content})
    with pytest.raises(UserError, match=f"same_results: {content} is none of git's hashes"):
        study.read_same_results(study.STUDY)


def test_a_param_that_came_later_and_does_as_before_makes_no_row_stale(two_commits, monkeypatch):
    before = study.recipe_of("HEAD", {"train.threads": 3})
    forget()
    monkeypatch.setattr(params, "CAME_LATER", params.CAME_LATER | {"train.threads": 2})
    without = study.recipe_of("HEAD", {"train.threads": 2})
    # What a table of that time has, its code apart: neither this param nor the one that did come later.
    content = with_overrides(CONTENT, {}).model_dump()
    assert [content["train"].pop(name) for name in ("threads", "distinct")] == [2, False]
    _, code, sections = study.committed("HEAD")
    used = {section: content[section] for section in sections}
    assert without == sha256(json.dumps([code, used], sort_keys=True).encode()).hexdigest()[:12]
    assert study.recipe_of("HEAD", {"train.threads": 3}) == before != without
    # A commit that does not have it yet:
    file = Path("params.yaml")
    file.write_text(re.sub("(?m)^  threads: .*\n", "", file.read_text(), count=1))
    assert "threads" not in yaml.safe_load(file.read_text())["train"]
    study.git("commit", "-qam", "before")
    forget()
    assert study.recipe_of("HEAD") == without
    seeds = pd.DataFrame({"commit": ["HEAD"]})
    for threads, rows in ((2, 1), (3, 0)):
        now = with_overrides(CONTENT, {"train.threads": threads})
        assert len(provenance.same_recipe(seeds, now)) == rows


def make_table(accuracies, **columns):
    lines = [
        {
            "part": "ladder",
            "entry": "ladder-x-patient",
            "repeated": True,
            "seed_found": "",
            "overrides": "{}",
            "suggested_lr": 0.1,
            "name": f"x-fold-{i}",
            "state": "success",
            "cut": "none",
            "size": 8,
            "epochs": 2,
        }
        | {
            "model": "resnet",
            "protocol": "grouped",
            "group_by": "patient",
            "fold": i,
            "seed": 1,
            "accuracy": value,
        }
        | columns
        for i, value in enumerate(accuracies)
    ]
    return pd.DataFrame(lines)


def test_a_rung_is_the_mean_of_its_rows_with_students_interval():
    values = [0.9, 0.94, 0.95, 0.91, 0.92]
    failed = make_table([0.1], state="failed")
    rung = study_tables.ladder(pd.concat([make_table(values), failed])).iloc[0]
    low, high = sms.DescrStatsW(values).tconfint_mean(alpha=0.05)
    assert (rung["rung"], rung["measured_on"], rung["repeats"]) == ("grouped by patient", "all test images", 5)
    assert rung["mean"] == pytest.approx(0.924)
    assert (rung["low"], rung["high"]) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_the_table_goes_on_from_its_file_with_empty_scores_and_any_commit(tmp_path):
    """In a clone without DVC's experiments, the committed rows are all there is."""
    file = tmp_path / "study.csv"
    table = make_table([0.9, 0.94], accuracy_copied=np.nan, commit="12e4567890", reason="")
    write_table(table, file)
    rows = read_scores(file)
    assert rows["commit"].tolist() == ["12e4567890"] * 2
    assert rows["reason"].tolist() == ["", ""]
    again = pd.DataFrame(rows.to_dict("records"))
    assert study_tables.ladder(again).equals(study_tables.ladder(table))
    assert study_tables.fill_page(PAGE, again, ["ladder"]) == study_tables.fill_page(PAGE, table, ["ladder"])


def test_the_committed_rows_make_the_committed_ladder():
    kept = pd.DataFrame(read_scores(PROJECT / "metrics/study.csv").to_dict("records"))
    rungs = pd.read_csv(PROJECT / "plots/study/ladder.csv")
    pd.testing.assert_frame_equal(study_tables.ladder(kept), rungs)


def test_two_recipes_of_one_network_have_a_line_each():
    plain, other = make_table([0.9, 0.92]), make_table([0.94, 0.98], entry="ladder-other_recipe-patient")
    rungs = study_tables.ladder(pd.concat([plain, other])).set_index("recipe")
    assert rungs["mean"].to_dict() == pytest.approx({"x": 0.91, "other_recipe": 0.96})


def test_recipes_come_before_baselines_and_have_no_line_across_a_rung_that_they_have_not_run_on(
    tmp_path, monkeypatch
):
    rows = [(rung, "a", 0.9 - place / 10) for place, rung in enumerate(study_tables.RUNGS.values())]
    rows += [("seed", "baseline size", 0.3), ("official", "b", 0.7), ("grouped by patient", "b", 0.6)]
    rungs = pd.DataFrame(rows, columns=["rung", "recipe", "mean"])
    drawn = []
    monkeypatch.setattr(study_tables, "save", lambda figure, file: drawn.append(figure))
    study_tables.ladder_figure(
        rungs.assign(measured_on="all test images", low=rungs["mean"] - 0.1, high=np.nan), tmp_path / "ladder.png"
    )
    lines = {container.get_label(): container.lines[0].get_ydata() for container in drawn[0].axes[0].containers}
    assert list(lines) == ["a", "b", "baseline size"]
    assert lines["a"] == pytest.approx([90, 80, 70, 60, 50])
    assert lines["b"] == pytest.approx([np.nan, 70, np.nan, np.nan, 60], nan_ok=True)


def test_one_row_has_its_own_interval_and_baselines_their_own_line():
    table = make_table(
        [0.9], accuracy_low=0.85, accuracy_high=0.95, baseline_accuracy_size=0.6, baseline_accuracy_network=0.9
    )
    rungs = study_tables.ladder(table).set_index("recipe")
    assert rungs.loc["x", ["repeats", "low", "high"]].tolist() == [1, 0.85, 0.95]
    assert rungs.loc["baseline size", "mean"] == 0.6
    assert "baseline network" not in rungs.index  # the network has a line of its own
    # What was not measured has no line.
    assert len(study_tables.ladder(table.assign(accuracy_patient_free=np.nan))) == 2


def test_values_that_are_compared_have_a_line_each_and_repetitions_share_one():
    """Folds are compared as well where each tests the other source."""
    compared = make_table([0.8, 0.6], repeated=False, accuracy_low=0.5, accuracy_high=0.9)
    table = pd.concat([make_table([0.5, 0.7], entry="y"), compared])
    lines = study_tables.summary(table, "ladder").splitlines()[2:]
    assert len(lines) == 3
    assert lines[0].startswith("| y | 2 | 8 | 2 | none | 60.0% [")
    assert lines[1] == "| x-fold-0 | 1 | 8 | 2 | none | 80.0% [50.0, 90.0] |"
    assert lines[2] == "| x-fold-1 | 1 | 8 | 2 | none | 60.0% [50.0, 90.0] |"


def test_parts_that_are_all_test_images_have_no_column():
    table = make_table([0.5, 0.7]).assign(accuracy_copy_free=[0.5, 0.7], accuracy_patient_free=[0.5, 0.6])
    header = study_tables.summary(table, "ladder").splitlines()[0]
    assert "without a copy" not in header and "of nobody seen" in header


def test_the_sources_two_folds_are_two_experiments_and_no_repetition():
    rows = study.read_study(PROJECT / "study.yaml", CONTENT)
    assert {row.repeated for row in rows if row.part == "sources"} == {False}
    assert {row.repeated for row in rows if row.part == "ladder"} == {True}


def test_what_the_seed_found_and_the_suggested_rate_stand_beside_the_figures():
    table = make_table([0.7], seed_found="validation 0.71", overrides='{"train.lr": "auto"}')
    header, _, line = study_tables.summary(table, "ladder").splitlines()
    assert "| the seed found | suggested rate |" in header and "| validation 0.71 | 0.1 |" in line
    plain = study_tables.summary(make_table([0.7]), "ladder")
    assert "the seed found" not in plain and "suggested rate" not in plain
    assert study_tables.summary(table, "sources") == ""


def test_seeds_share_their_test_images_so_their_interval_is_at_least_one_runs_own():
    runs = make_table([0.9, 0.9], fold=0).assign(accuracy_low=[0.88, 0.86], accuracy_high=[0.92, 0.94])
    figure = study_tables.figure_of(runs, "accuracy")
    assert figure == pytest.approx({"repeats": 2, "mean": 0.9, "low": 0.87, "high": 0.93})
    apart = study_tables.figure_of(runs.assign(accuracy=[0.8, 1.0]), "accuracy")
    assert (apart["low"], apart["high"]) == (0, 1)  # Student's interval is wider
    assert study_tables.figure_of(runs.assign(fold=[0, 1]), "accuracy")["low"] == 0.9


def test_baselines_of_one_test_set_count_once_however_many_seeds_there_are():
    runs = make_table(
        [0.9, 0.92], fold=0, baseline_accuracy_size=0.6,
        baseline_accuracy_size_low=0.55, baseline_accuracy_size_high=0.65,
    )  # fmt: skip
    line = study_tables.ladder(runs).set_index("recipe").loc["baseline size"]
    assert line[["repeats", "low", "high"]].tolist() == [1, 0.55, 0.65]


def test_a_single_run_has_the_wider_of_its_intervals():
    bounds = {
        "accuracy_low": 0.88,
        "accuracy_high": 0.92,
        "accuracy_groups_low": 0.8,
        "accuracy_groups_high": 0.97,
    }
    figure = study_tables.figure_of(make_table([0.9], **bounds), "accuracy")
    assert (figure["mean"], figure["low"], figure["high"]) == (0.9, 0.8, 0.97)


def test_a_failed_row_stays_in_the_table_until_it_has_ended_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = study.read_study(write(tmp_path, [{"name": "a"}, {"name": "b"}]), CONTENT)
    monkeypatch.setattr(study, "recipe_of", lambda *_: "r")
    lines = make_table([np.nan, 0.9]).assign(
        name=["a", "b"], state=["failed", "success"], reason=["no weights", ""], recipe="r"
    )
    write_table(lines, study.RESULTS)
    table = study.Study(rows)
    assert [table.state(row) for row in rows] == ["failed", "success"]
    assert table.reason(rows[0]) == "no weights"
    queued = study.Record("a", "queued", "r", "c" * 40, "", 0, {})
    for records, expected in (
        ({}, "failed"),
        ({"a": queued}, "failed"),
        ({"a": study.Record("a", "success", "r", "c" * 40, "", 0, {"test": {"accuracy": 0.8}})}, "success"),
    ):
        table.records = records
        table.export(CONTENT)
        written = read_scores(study.RESULTS).set_index("name")
        assert written["state"].tolist() == [expected, "success"]
        assert written.loc["a", "reason"] == ("no weights" if expected == "failed" else "")


def test_counts_stay_whole_numbers_where_a_row_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = study.read_study(write(tmp_path, [{"name": "a"}, {"name": "b"}]), CONTENT)
    monkeypatch.setattr(study, "recipe_of", lambda *_: "r")
    lines = make_table([np.nan, 0.9]).assign(name=["a", "b"], state=["failed", "success"], reason="", recipe="r")
    write_table(lines.assign(images=[np.nan, 1404]), study.RESULTS)
    study.Study(rows).export(CONTENT)
    written = pd.read_csv(study.RESULTS, dtype=str).set_index("name")
    assert written.loc["b", ["images", "accuracy"]].tolist() == ["1404", "0.9"]
    assert pd.isna(written.loc["a", "images"])


def test_what_has_failed_has_none_of_the_scores_that_dvc_shows_for_it():
    metrics = {"test": {"accuracy": 0.9}, "train": {"validation_accuracy": 0.8}}
    success, failed = (
        study.scored(study.Record("a", state, "r", "c" * 40, "", 0, metrics)) for state in ("success", "failed")
    )
    shown = {"accuracy": 0.9, "validation_accuracy": 0.8}
    assert success.items() >= shown.items()
    assert not {name: failed[name] for name in shown if failed.get(name) is not None}
    table = pd.read_csv(PROJECT / study.RESULTS)
    assert table.loc[table["state"] == "failed", list(shown)].isna().all(axis=None)


def test_what_has_failed_before_is_not_told_as_an_outcome(tmp_path, monkeypatch, capsys):
    rows = study.read_study(write(tmp_path, [{"name": "a"}]), CONTENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "recipe_of", lambda *_: "r")
    write_table(
        make_table([np.nan]).assign(name="a", state="failed", reason="no weights", recipe="r"), study.RESULTS
    )
    table = study.Study(rows)
    assert table.state(rows[0]) == "failed"
    monkeypatch.setattr(study, "git", lambda *_: "refs")
    monkeypatch.setattr(study, "dvc", lambda *_: "")
    table.look, table.export = (lambda: None), (lambda _: None)
    study.run(table, CONTENT, 1)
    assert capsys.readouterr().out == ""


def test_a_worker_is_started_where_none_is_at_work_and_only_there(tmp_path, monkeypatch):
    rows = study.read_study(write(tmp_path, [{"name": "a"}, {"name": "b"}]), CONTENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "recipe_of", lambda *_: "r")
    ended = subprocess.Popen(["true"])
    ended.wait()
    looks, calls = iter(range(4)), []

    def look():
        number = next(looks)  # a: waits, runs, its worker is killed, is done; b: waits, then is done
        state = ("queued", "running", "running", "success")[number]
        pid = (None, os.getpid(), ended.pid, None)[number]
        scores = {"test": {"accuracy": 0.9}}
        table.records = {
            "a": study.Record("a", state, "r", "c" * 40, "", pid, scores),
            "b": study.Record("b", "queued" if number < 3 else "success", "r", "c" * 40, "", None, scores),
        }
        calls.append(number)

    table = study.Study(rows)
    table.look, table.export = look, lambda _: None
    refs = iter("1234")
    monkeypatch.setattr(study, "git", lambda *_: next(refs))
    monkeypatch.setattr(study, "dvc", lambda *words: calls.append(words[1]))
    study.run(table, CONTENT, 1)
    assert calls == [0, "start", 1, 2, "start", 3, "stop"]


def test_the_ladder_is_told_by_class():
    runs = make_table([0.9], sensitivity_glioma=0.8, sensitivity_glioma_low=0.7, sensitivity_glioma_high=0.85)
    assert study_tables.class_table(runs).splitlines()[2] == "| x | grouped by patient | 80.0% [70.0, 85.0] |"


def test_the_reason_of_a_failure_is_the_stages_own_word(tmp_path):
    log = tmp_path / "log"
    log.write_text("Running stage 'train':\nerror: train.lr: too high\nERROR: failed to reproduce 'train'\n")
    assert study.read_reason(str(log), 1) == "train.lr: too high"
    log.write_text(f"error: put it at {Path.home()}/weights\n")
    assert study.read_reason(str(log), 1) == "put it at ~/weights"
    log.write_text("Running stage 'train':\n")
    assert study.read_reason(str(log), -9) == "killed, or failed without a word (exit status -9)"
    assert "exit status None" in study.read_reason(None, None)


@pytest.mark.long
def test_the_demo_is_stopped_and_does_only_what_is_missing(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    clone.link_venv()
    content = yaml.safe_load((clone.folder / "study.demo.yaml").read_text())
    bad = {"name": "too-fast", "overrides": {"train.lr": 1e30}}
    content["parts"]["ladder"]["experiments"].insert(0, bad)
    (clone.folder / "study.demo.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    demo = clone.folder / "study-demo"
    process = subprocess.Popen(
        ["python", "-m", "scripts.study_demo", "--jobs", "1"],
        cwd=clone.folder, env=clone.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = []
    for line in process.stdout:
        first.append(line)
        if "test images right" in line:
            study_process = subprocess.run(
                ["pgrep", "--parent", str(process.pid)], capture_output=True, text=True, check=True
            ).stdout
            time.sleep(3)  # the next one is running
            subprocess.run(["kill", "-s", str(int(signal.SIGTERM)), *study_process.split()], check=True)
    assert process.wait() != 0
    assert sum("queued" in line for line in first) == 4
    done = pd.read_csv(demo / "metrics/study.csv").set_index("name")
    assert done.loc["too-fast", "state"] == "failed"
    assert "Running" not in clone.run(f"cd {demo} && dvc queue status")
    refs = clone.run(f"git -C {demo} for-each-ref refs/exps | grep -v celery")

    listed = clone.run("python -m scripts.study_demo --list")
    assert re.search(r"ladder-default-official +success", listed)
    assert re.search(r"\d of 4 to run, about \d+\.\d hours", listed)
    output = clone.run("make study STUDY=demo")
    assert "3 of 4 finished, in metrics/study.csv; 1 failed" in output
    assert "too-fast failed: the training has diverged: the loss is" in output
    # What had been finished is the very same experiment.
    assert set(refs.splitlines()) <= set(clone.run(f"git -C {demo} for-each-ref refs/exps").splitlines())
    table = pd.read_csv(demo / "metrics/study.csv").set_index("name")
    assert (table["state"] == "failed").sum() == 1
    assert table.loc["ladder-default-patient-fold-1", "fold"] == 1
    shown = json.loads(clone.run(f"cd {demo} && dvc exp show --json"))[1]["experiments"]
    scores = {
        row["name"]: row["revs"][0]["data"]["metrics"]["metrics/test.json"]["data"]["accuracy"]
        for row in shown
        if row["executor"]["state"] == "success"
    }
    assert table["accuracy"].dropna().to_dict() == scores
    assert (demo / "plots/study/ladder.png").stat().st_size > 5000
    rungs = pd.read_csv(demo / "plots/study/ladder.csv")
    assert set(rungs["rung"]) == {"official", "grouped by patient"}
    assert "| ladder-default-patient | 2 |" in (demo / "docs/study.md").read_text()
    drawn = clone.run(f"cd {demo} && dvc plots show plots/study/ladder.csv -x rung -y mean --json")
    assert "grouped by patient" in drawn
    assert clone.run("git status --porcelain") == " M study.demo.yaml\n"
