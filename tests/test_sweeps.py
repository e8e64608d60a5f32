"""Sweeps by one's own hand: the commands of the README and what comes of them."""

import json
import re
import time

import pandas as pd
import pytest
import yaml


def experiments(checkout):
    """Return what DVC has of each experiment: its state and its params."""
    shown = json.loads(checkout.run("dvc exp show --json"))[1]["experiments"] or []
    return {
        row["name"]: (
            (row["executor"] or {"state": "success"})["state"],
            row["revs"][0]["data"]["params"]["params.yaml"]["data"],
        )
        for row in shown
    }


@pytest.mark.long
def test_a_sweep_is_queued_run_two_at_a_time_compared_and_kept(checkout):
    checkout.run("dvc exp run --queue -S 'train.dropout=choice(0.3,0.5)'")
    checkout.run("dvc queue start -j 2 > /dev/null 2>&1")  # its workers would keep a pipe open
    deadline = time.monotonic() + 300
    while set(re.findall("Queued|Running|Failed|Success", checkout.run("dvc queue status"))) != {"Success"}:
        assert time.monotonic() < deadline
        time.sleep(2)
    checkout.run("dvc queue stop")  # the second of two workers does not always see that nothing is left
    dropout = {name: params["train"]["dropout"] for name, (_, params) in experiments(checkout).items()}
    assert sorted(dropout.values()) == [0.3, 0.5]
    table = checkout.run("dvc exp show --csv --only-changed")
    assert all(name in table for name in dropout)
    first, second = (next(name for name, value in dropout.items() if value == wanted) for wanted in (0.3, 0.5))
    changed = json.loads(checkout.run(f"dvc exp diff {first} {second} --json"))
    assert changed["params"]["params.yaml"]["train.dropout"] == {
        "old": 0.3,
        "new": 0.5,
        "diff": pytest.approx(0.2),
    }
    assert checkout.run("git status --porcelain") == ""

    checkout.run(f"dvc exp branch {first} kept && git checkout --quiet kept && dvc checkout --quiet")
    assert yaml.safe_load((checkout.folder / "params.yaml").read_text())["train"]["dropout"] == 0.3
    predicted = pd.read_csv(checkout.folder / "data/predictions.csv")
    right = (predicted["class"] == predicted["prediction"]).mean()
    scores = json.loads((checkout.folder / "metrics/test.json").read_text())
    assert scores["accuracy"] == pytest.approx(right, abs=5e-5)
    assert "up to date" in checkout.run("dvc status")


@pytest.mark.long
def test_a_range_of_floats_is_queued_as_floats(checkout):
    checkout.run("dvc exp run --queue -S 'train.dropout=range(0.1,0.4,0.1)'")
    queued = experiments(checkout).values()
    assert [state for state, _ in queued] == ["queued"] * 4
    # By adding up 0.1, so the third is not 0.3 to the last digit, and the end is reached.
    values = sorted(params["train"]["dropout"] for _, params in queued)
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(isinstance(value, float) for value in values)
