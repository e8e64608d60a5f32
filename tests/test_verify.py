"""What is said of a stage that gives something else, and the two ways of running it again."""

import re

import pandas as pd
import pytest
import yaml

from scripts import verify
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    ("stage", "new", "after", "verdict", "figures"),
    [
        ("train", "1", {"accuracy": 0.5}, "identical", ""),
        ("split", "2", {"accuracy": 0.5}, "different", "out"),
        ("audit", "2", {"accuracy": 0.5}, "within tolerance", "out"),
        ("audit", "2", {"accuracy": 0.501}, "different", "out"),
        ("evaluate", "2", {"accuracy": 0.519}, "within tolerance", "accuracy 0.5 -> 0.519"),
        ("evaluate", "2", {"accuracy": 0.47}, "different", "accuracy 0.5 -> 0.47"),
        ("evaluate", "2", {"precision": 0.5}, "different", "accuracy missing"),
    ],
)
def test_hashes_come_first_and_then_shares_by_tolerance(stage, new, after, verdict, figures):
    assert verify.judge(stage, {"out": "1"}, {"out": new}, {"accuracy": 0.5}, after, set()) == (verdict, figures)


@pytest.mark.parametrize(
    ("earlier", "verdict"),
    [
        ({"identical"}, "different"),
        ({"identical", "within tolerance"}, "within tolerance"),
        ({"within tolerance", "different"}, "different"),
    ],
)
def test_a_stage_without_figures_is_as_far_off_as_what_it_comes_from(earlier, verdict):
    assert verify.judge("report", {"page": "1"}, {"page": "2"}, {}, {}, earlier) == (verdict, "page")


@pytest.mark.parametrize(
    ("rate", "verdict"), [(0.02, "within tolerance"), (0.03, "different"), (0.004, "different")]
)
def test_a_suggested_rate_is_judged_by_a_factor(rate, verdict):
    rates = {"suggested_lr": 0.01}, {"suggested_lr": rate}
    judged = verify.judge("lr_range", {"o": "1"}, {"o": "2"}, *rates, {"identical"})
    assert judged == (verdict, f"suggested_lr 0.01 -> {rate}")


def test_headlines_come_before_parts_and_middles_before_bounds():
    before = {"accuracy": 0.9, "sensitivity_a": 0.9, "accuracy_low": 0.8}
    after = {"accuracy": 0.91, "sensitivity_a": 0.5, "accuracy_low": 0.5}
    judged = verify.judge("evaluate", {"o": "1"}, {"o": "2"}, before, after, set())
    assert judged == ("within tolerance", "accuracy 0.9 -> 0.91")
    del before["accuracy"]
    assert verify.judge("evaluate", {"o": "1"}, {"o": "2"}, before, after, set())[0] == "different"


def test_made_up_heads_are_not_judged_and_all_other_images_are():
    # What the committed run has and the same commit has on another processor.
    before = {"novelty_flagged_test": 0.0242, "novelty_flagged_noise": 1.0, "novelty_flagged_phantoms": 0.0775}
    after = {"novelty_flagged_test": 0.0249, "novelty_flagged_noise": 1.0, "novelty_flagged_phantoms": 0.0}
    judged = verify.judge("export", {"o": "1"}, {"o": "2"}, before, after, set())
    assert judged == ("within tolerance", "novelty_flagged_test 0.0242 -> 0.0249")
    judged = verify.judge("export", {"o": "1"}, {"o": "2"}, before, after | {"novelty_flagged_noise": 0.9}, set())
    assert judged == ("different", "novelty_flagged_noise 1 -> 0.9")


def test_times_counts_and_losses_are_not_judged():
    before = {"latency_ms": 0.1, "validation_loss": 0.2, "errors": 5, "best_epoch": 3, "f1": 0.5}
    after = {"latency_ms": 0.9, "validation_loss": 0.9, "errors": 9, "best_epoch": 1, "f1": 0.51}
    assert verify.judge("train", {"o": "1"}, {"o": "2"}, before, after, set()) == (
        "within tolerance",
        "f1 0.5 -> 0.51",
    )


def test_an_older_commits_params_take_what_they_have():
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    older = {"data": params["data"], "train": {"epochs": 40}}
    changed = verify.on_phantoms(
        older, {"data": {"source": "phantom"}, "train": {"epochs": 3, "lr": 1}, "new": {}}
    )
    assert changed["data"]["source"] == "phantom"
    assert changed["train"] == {"epochs": 3}
    assert verify.on_phantoms(changed, {"train": {"epochs": 5}}) == changed


def rows(report):
    return dict(re.findall(r"^\| (\w+) \| ([\w ]+) \|", report, re.MULTILINE))


@pytest.mark.long
def test_a_clean_clone_gives_what_is_committed_and_a_wrong_figure_is_found(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    clone.link_venv()
    stages = yaml.safe_load((clone.folder / "dvc.yaml").read_text())["stages"]
    # Someone has written a better figure by hand.
    lock = (clone.folder / "dvc.lock").read_text()
    table = yaml.safe_load(lock)
    out = next(out for out in table["stages"]["evaluate"]["outs"] if out["path"] == "metrics/test.json")
    (clone.folder / "dvc.lock").write_text(lock.replace(out["md5"], "a" * 32))
    file = clone.folder / "metrics/test.json"
    file.write_text(re.sub(r'"accuracy": [\d.]+', '"accuracy": 0.999', file.read_text()))
    clone.run("git commit --all --quiet --message better")
    output = clone.run("make verify", code=2)
    verdicts = rows(output)
    assert verdicts.pop("evaluate") == "different"
    assert verdicts == dict.fromkeys(stages.keys() - {"evaluate"}, "identical") | {"stage": "verdict"}
    assert re.search(r"\| evaluate \| different \| accuracy 0\.999 -> 0\.\d+ \|", output)
    assert clone.run("git status --porcelain") == ""


@pytest.mark.long
def test_a_pull_request_is_compared_with_its_base(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    base = clone.run("git rev-parse --abbrev-ref HEAD").strip()
    clone.params({"train": {"lr": 0.001, "epochs": 1}})
    clone.run("git checkout --quiet -b change && git commit --all --quiet --message change")
    report = clone.run(f"python -m scripts.verify --base {base} 2> /dev/null")
    verdicts = rows(report)
    assert [verdicts[stage] for stage in ("download", "audit", "preprocess", "split")] == ["identical"] * 4
    assert verdicts["train"] != "identical"
    assert re.search(r"\| metrics/train.json +\| epochs +\| 2 +\| 1 +\| -1 +\|", report)
    predicted = pd.read_csv(finished.folder / "plots/confusion.csv")
    counts = pd.crosstab(predicted["actual"], predicted["predicted"])
    for label, line in counts.iterrows():
        assert f"| {label} | {' | '.join(str(number) for number in line)} |" in report
    assert report.count("actual \\ predicted") == 2
