import numpy as np
import pandas as pd
import pytest

from braintumor.errors import UserError
from braintumor.lr_range import range_curve, range_rates, suggest_rate


def test_rates_rise_by_one_factor():
    assert range_rates(1e-4, 1.0, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_the_loss_is_smoothed_without_a_bias_to_the_start():
    curve = range_curve([1.0, 2.0, 4.0], np.array([2.0, 1.0, 1.0]), 0.5)
    # By hand: 2; (2 / 4 + 1 / 2) / (3 / 4) = 4 / 3; (2 / 8 + 1 / 4 + 1 / 2) / (7 / 8) = 8 / 7.
    assert curve["smoothed_loss"].tolist() == pytest.approx([2, 4 / 3, 8 / 7])
    assert curve["lr"].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("last", [8.1, np.inf, np.nan])
def test_the_curve_ends_where_the_training_diverges(last):
    curve = range_curve([1.0, 2.0, 4.0, 8.0], np.array([3.0, 2.0, last, 1.0]), 0.0)
    assert curve["loss"].tolist() == [3.0, 2.0]


def test_the_rate_at_the_steepest_slope_is_suggested():
    rates = np.array(range_rates(1e-5, 1.0, 101))
    falling = 2 - 1 / (1 + np.exp(-4 * (np.log10(rates) + 2.5)))  # steepest at 10 ** -2.5
    assert suggest_rate(pd.DataFrame({"lr": rates, "smoothed_loss": falling})) == pytest.approx(10**-2.5)


def test_a_loss_that_never_falls_is_an_error():
    for losses in ([1.0, 1.5, 2.0], [1.0]):
        curve = pd.DataFrame({"lr": np.geomspace(1, 4, 3)[: len(losses)], "smoothed_loss": losses})
        with pytest.raises(UserError, match="falls at no learning rate"):
            suggest_rate(curve)
