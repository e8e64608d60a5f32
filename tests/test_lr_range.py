import numpy as np
import pandas as pd
import pytest
import yaml

from braintumor.lr_range import parts_of, range_curve, range_rates, suggest_rate
from tests.conftest import PROJECT

STAGE = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["lr_range"]["cmd"]


def test_rates_rise_by_one_factor():
    assert range_rates(1e-4, 1.0, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_a_straight_line_stays_where_it_is_when_smoothed():
    # A running average would lie above a falling line; noise around it is averaged out.
    rates, line = range_rates(1e-4, 1.0, 101), np.linspace(2, 1, 101)
    noise = 0.1 * (-1.0) ** np.arange(101)
    curve = range_curve(rates, line + noise, 0.05)
    assert curve["lr"].tolist() == rates
    assert curve["log10_lr"].to_numpy() == pytest.approx(np.linspace(-4, 0, 101))
    assert curve["smoothed_loss"].to_numpy()[20:-20] == pytest.approx(line[20:-20], abs=0.002)
    assert range_curve(rates, line + noise, 0.0)["smoothed_loss"].to_numpy() == pytest.approx(line + noise)


@pytest.mark.parametrize("last", [8.1, np.inf, np.nan])
def test_the_curve_ends_where_the_training_diverges(last):
    curve = range_curve([1.0, 2.0, 4.0, 8.0], np.array([3.0, 2.0, last, 1.0]), 0.0)
    assert curve["loss"].tolist() == curve["smoothed_loss"].tolist() == [3.0, 2.0]


def test_a_fall_after_the_minimum_is_no_suggestion():
    losses = [2.0, 1.9, 1.0, 1.9, 3.9, 2.0]
    curve = pd.DataFrame({"lr": np.geomspace(1, 32, 6), "smoothed_loss": losses})
    assert suggest_rate(curve) == 4.0  # it falls by 0.9 to there; the fall by 1.9 comes too late


def test_the_rate_at_the_steepest_slope_is_suggested():
    rates = np.array(range_rates(1e-5, 1.0, 101))
    falling = 2 - 1 / (1 + np.exp(-4 * (np.log10(rates) + 2.5)))  # steepest at 10 ** -2.5
    assert suggest_rate(pd.DataFrame({"lr": rates, "smoothed_loss": falling})) == pytest.approx(10**-2.5)


def test_a_loss_that_never_falls_suggests_nothing():
    for losses in ([1.0, 1.5, 2.0], [1.0]):
        curve = pd.DataFrame({"lr": np.geomspace(1, 4, 3)[: len(losses)], "smoothed_loss": losses})
        assert suggest_rate(curve) is None


def test_the_stage_raises_the_rate_until_the_training_diverges(checkout):
    checkout.params({"lr_range": {"start": 1e-5, "end": 1e12, "steps": 18}})
    checkout.run(STAGE)
    curve = pd.read_csv(checkout.folder / "plots/lr_range.csv")
    assert curve["lr"].to_numpy() == pytest.approx(range_rates(1e-5, 1e12, 18)[: len(curve)], rel=1e-3)
    assert 4 < len(curve) < 18  # a rate of 1e12 is far too large


def test_the_stage_refuses_the_parts_that_the_training_would(checkout):
    checkout.params({"train": {"batch_size": 16, "accumulation": 3}})
    output = checkout.run(STAGE, code=1)
    assert output.startswith("error: train.batch_size: 16 of ") and output.count("\n") == 1


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "parts"),
    [
        (64, 1, 1),
        (64, 4, 4),
        (512, 1, 8),
        (512, 2, 8),
        (200, 1, 4),
        (96, 1, 2),
        (134, 1, 1),
        (768, 6, 12),
    ],
)
def test_the_batch_of_many_processes_is_taken_in_parts(batch_size, accumulation, parts):
    assert parts_of(batch_size, accumulation, "torchrun --standalone --nproc-per-node=8") == parts
    assert parts_of(batch_size, accumulation, "python -u") == accumulation
