"""The search draws from its space, gives up on what is behind, and goes on where it was stopped."""

import re
import signal
import subprocess

import dvc.api
import optuna
import pytest
import yaml
from optuna.trial import FixedTrial, TrialState

from braintumor import search, study
from braintumor.errors import UserError
from tests.conftest import PROJECT

CONTENT = yaml.safe_load((PROJECT / "params.yaml").read_text())
NEEDED = r"train\.dropout: needs low and high, or a list of choices"


def test_values_are_numbers_of_four_digits_and_choices_what_they_are():
    space = {"train.lr": {"low": 0.01, "high": 1.0, "log": True}, "train.channels": {"choices": [[8], [8, 16]]}}
    trial = FixedTrial({"train.lr": 0.123456, "train.channels": "[8, 16]"})
    assert search.suggest(trial, space) == {"train.lr": 0.1235, "train.channels": [8, 16]}
    drawn = [search.suggest(optuna.create_study().ask(), space)["train.lr"] for _ in range(50)]
    assert all(0.01 <= value <= 1 for value in drawn)
    assert min(drawn) < 0.1 < max(drawn)


def test_the_projects_search_can_be_run():
    assert search.read_search(PROJECT / "search.yaml", CONTENT)["trials"] > 0


def test_a_bound_that_a_param_does_not_take_is_an_error(tmp_path):
    file = tmp_path / "search.yaml"
    start = "{trials: 1, startup: 1, warmup: 1, overrides: {}, space: "
    for space, message in (
        ("{train.dropout: {low: 0.1, high: 1.2}}}", r"train\.dropout: 1\.2: .*less than 1"),
        # What is drawn between two bounds is no integer.
        ("{train.patience: {low: 2, high: 10}}}", r"train\.patience: 2: .*integer"),
        ("{train.dropout: {low: little, high: 0.2}}}", r"train\.dropout: little: could not convert"),
        ("{train.dropout: {choices: []}}}", NEEDED),
        (
            "{train.dropout: {choices: [], low: 0.1, high: 0.2}}}",
            NEEDED,
        ),
        ("{train.dropout: {low: 0.1}}}", NEEDED),
        ("{train.dropout: 0.1}}", NEEDED),
        ("{train.dropout: {choices: 5}}}", NEEDED),
        ("{train.optimizer: {choices: sgd}}}", r"train\.optimizer: needs low and high, or a list of choices"),
        ("{train.dropout: {low: null, high: 0.2}}}", r"train\.dropout: None: .*must be .*number"),
        ("{train.dropout: {low: [0.1], high: 0.2}}}", r"train\.dropout: \[0\.1\]: .*must be .*number"),
        ("{1: {low: 0.1, high: 0.2}}}", r"1: is no param"),
        ("{train.lr: {low: 0.1, high: 0.2, lgo: true}}}", r"train\.lr: lgo is not asked for there"),
        (
            "{train.lr: {low: 0.1, high: 0.2, choices: [1]}}}",
            r"train\.lr: high, low is not asked for",
        ),
        ("{train.dropout: {low: 0.6, high: 0.1}}}", r"train\.dropout: low must be less than high"),
        (
            "{train.dropout: {low: 0.0, high: 0.6, log: true}}}",
            r"train\.dropout: .* over 0 where the scale is log",
        ),
        ("{train.lr: {low: 0.1, high: 0.2, log: maybe}}}", r"train\.lr: log is true or false, got maybe"),
        ("[train.dropout]}", "space and overrides are params"),
        ("}", "space and overrides are params"),
        ("{train.droput: {low: 0.1, high: 0.2}}}", r"train\.droput: no such param"),
    ):
        file.write_text(start + space)
        with pytest.raises(UserError, match=message):
            search.read_search(file, CONTENT)
    file.write_text(f"{start}{{train.patience: {{choices: [null, 5]}}}}}}")  # nothing is a choice like others
    assert search.read_search(file, CONTENT)["space"]["train.patience"]["choices"] == [None, 5]
    file.write_text("{trials: many, startup: 1, warmup: 1, overrides: {}, space: {}}")
    with pytest.raises(UserError, match="are whole numbers, got \\['many', 1, 1\\]"):
        search.read_search(file, CONTENT)
    file.write_text("{space: {}}")
    with pytest.raises(UserError, match="lacks overrides, startup, trials, warmup"):
        search.read_search(file, CONTENT)


def test_an_epochs_line_is_read():
    line = "epoch 3/20: loss 0.512, accuracy 0.801; validation loss 0.391, accuracy 0.872 (best); 12 s\n"
    assert search.EPOCH.match(line).groups() == ("3", "0.872")


@pytest.mark.long
def test_it_goes_on_where_it_was_stopped_and_each_trial_is_an_experiment(checkout, monkeypatch):
    space = {"train.dropout": {"low": 0.0, "high": 0.5}, "train.channels": {"choices": [[8, 16], [4, 8]]}}
    content = {"trials": 2, "startup": 5, "warmup": 1, "overrides": {"train.epochs": 3}, "space": space}
    (checkout.folder / "search.yaml").write_text(yaml.safe_dump(content))
    process = subprocess.Popen(
        ["python", "-m", "braintumor.search"],
        cwd=checkout.folder,
        env=checkout.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.stdout.close()
    assert process.wait() == 1
    output = checkout.run("python -m braintumor.search")
    name = re.search(r"best: (search-\w+)-\d", output)[1]
    values = first.split(": ", 1)[1].strip()
    assert f"{name}-0: {values}" == first.strip()
    assert f"{name}-1: {values}" in output  # what was stopped is done first
    trials = optuna.load_study(study_name=name, storage=f"sqlite:///{checkout.folder}/search.db").trials
    states = [trial.state for trial in trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len({trial.params["train.dropout"] for trial in trials}) == 2
    assert sorted(checkout.run("dvc exp list --name-only").split()) == [f"{name}-1", f"{name}-2"]
    monkeypatch.chdir(checkout.folder)
    for trial in trials[1:]:
        assert list(trial.intermediate_values) == [1, 2, 3]
        scores = dvc.api.metrics_show("metrics/train.json", rev=f"{name}-{trial.number}")
        assert scores["validation_accuracy"] == trial.value
    assert "best: " in checkout.run("python -m braintumor.search")  # nothing left to do
    assert checkout.run("git status --porcelain") == " M search.yaml\n"


@pytest.mark.long
def test_a_trial_that_is_given_up_ends_at_once_and_leaves_nothing(checkout, monkeypatch):
    monkeypatch.chdir(checkout.folder)
    epochs = []
    state = search.run_trial("bad", {"train.epochs": 50}, lambda epoch, score: epochs.append(epoch) or epoch == 2)
    assert state == ("given up", "")
    assert epochs == [1, 2]
    assert checkout.run("dvc exp list --name-only") == ""
    assert checkout.run("git status --porcelain") == ""
    state, reason = search.run_trial("diverging", {"train.lr": 1e30}, lambda epoch, score: False)
    assert state == "failed"
    assert "the training has diverged" in reason
    assert study.git("status", "--porcelain") == ""
