"""Which images are explained, what resembles them, and measures of maps that are known by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.proportion import proportion_confint
from torch import nn

from braintumor import explanation
from braintumor.figures import dropout_sums
from braintumor.intervals import resample_groups
from braintumor.scores import wilson_interval
from tests.test_saliency import batches, square


def table(actual, predicted, **more):
    return pd.DataFrame({"class": actual, "prediction": predicted} | more)


def test_all_wrong_images_come_first_then_some_right_ones_of_each_class():
    predictions = table(list("aaaaaabbbbcc"), list("aabaaabbbacb"))
    chosen = explanation.choose_images(predictions, 2, seed=1)
    assert chosen[:3].tolist() == [2, 9, 11]
    assert predictions["class"].iloc[chosen[3:]].tolist() == list("aabbc")  # one c is right
    assert (predictions["class"] == predictions["prediction"]).iloc[chosen[3:]].all()
    assert len(set(chosen)) == len(chosen)
    assert chosen.tolist() == explanation.choose_images(predictions, 2, seed=1).tolist()
    assert any(chosen.tolist() != explanation.choose_images(predictions, 2, seed).tolist() for seed in range(2, 9))
    assert len(explanation.choose_images(predictions, 99, seed=1)) == 12


def test_the_nearest_image_is_the_mirrored_and_brightened_one():
    images = np.random.default_rng(0).integers(0, 120, (6, 32, 32), np.uint8)
    images = images.repeat(2, axis=1).repeat(2, axis=2)
    images[4] = images[1, :, ::-1] * 2
    images[5] = images[2]
    nearest, values = explanation.nearest_images(images, np.array([4, 5]), np.array([0, 1, 2, 3]))
    assert nearest.tolist() == [1, 2]
    assert values == pytest.approx([1, 1], abs=1e-3)
    # What it resembles most is found among those asked for only.
    nearest, values = explanation.nearest_images(images, np.array([4]), np.array([0, 2, 3]))
    assert nearest[0] in (0, 2, 3) and values[0] < 0.5


def test_places_by_hand():
    # 10 x 10 cells: the first two maps are their tumour, the third points beside it, the fourth is empty.
    masks = square((0, 0, 2, 2), (4, 4, 8, 8), (5, 5, 7, 7), (0, 0, 1, 1))
    maps = masks.astype(np.float32)
    maps[2], maps[3] = 0, 0
    maps[2, 0, 0], maps[2, 5:7, 5:7] = 1, 0.5
    predictions = table(list("aabb"), list("aaab"), group=[1, 2, 3, 4])
    scores = explanation.measure_places(predictions, maps, masks, 100, 0)
    assert scores["located"] == 4 and scores["located_a"] == 2 and scores["located_wrong"] == 1
    assert (scores["pointing"], scores["pointing_a"], scores["pointing_b"]) == (0.5, 1, 0)
    assert (scores["pointing_right"], scores["pointing_wrong"]) == pytest.approx((2 / 3, 0), abs=5e-5)
    assert (scores["pointing_low"], scores["pointing_high"]) == pytest.approx(wilson_interval(2, 4), abs=5e-5)
    # At thresholds up to 0.5 the third map is its tumour and one cell more.
    assert scores["overlap"] == pytest.approx((1 + 1 + 4 / 5 + 0) / 4)
    assert scores["overlap_b"] == pytest.approx(2 / 5)
    assert scores["overlap_threshold"] <= 0.5
    assert scores["tumour_area"] == pytest.approx((4 + 16 + 4 + 1) / 400)
    assert scores["pointing_centre"] == 0.5  # the middle is a corner of cell 5, 5
    assert scores["overlap_low"] <= scores["overlap"] <= scores["overlap_high"]


def test_the_map_of_the_middle_overlaps_a_tumour_there():
    masks = square((4, 3, 6, 7), (4, 3, 6, 7))
    scores = explanation.measure_places(
        table(["a"] * 2, ["a"] * 2, group=[1, 2]), np.ones((2, 4, 4), np.float32), masks, 10, 0
    )
    assert scores["pointing_centre"] == 1
    # The discs around the middle have 4, 12, 16 pixels and more; that of 12 holds the tumour's 8.
    assert scores["overlap_centre"] == pytest.approx(8 / 12, abs=5e-5)
    assert scores["overlap"] == scores["tumour_area"] == pytest.approx(8 / 100)
    # Both images are alike, so that every resample is, too.
    for end in ("", "_low", "_high"):
        assert scores[f"overlap_over_centre{end}"] == pytest.approx(8 / 100 - 8 / 12, abs=5e-5)
    # The even map's first largest value is in its corner.
    assert scores["pointing_over_centre"] == -1


def test_the_table_of_maps_says_where_their_peaks_are():
    maps = np.zeros((2, 10, 10), np.float32)
    maps[0, 0, 3] = 1
    predictions = table(["a", "b"], ["a", "a"], path=["x", "y"], row=[7, 9])
    described = explanation.describe_maps(predictions, maps, 10, 0.1)
    assert described["right"].tolist() == [True, False] and described["row"].tolist() == [7, 9]
    assert described.loc[0, ["border_share", "peak_x", "peak_y"]].tolist() == [1, 0.35, 0.05]
    assert described.loc[1, ["border_share", "peak_x", "peak_y"]].isna().all()


class Edges(nn.Module):
    """A map that is made without any weight: where an image is bright."""

    def forward(self, images):
        return torch.cat([images, images**2], 1)


def network(head):
    """Build a network of one block without weights and a linear layer over the means of its two channels."""
    last = nn.Linear(2, 2, bias=False)
    last.weight.data = torch.tensor(head)
    return nn.Sequential(Edges(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def bright_tumours():
    masks = square((0, 0, 2, 2), (6, 6, 9, 9), (3, 0, 6, 2), (7, 1, 9, 3))
    return np.where(masks, 9, 1), masks


def shuffle(model, images, masks, shuffles, groups=None):
    drawn = resample_groups(np.arange(len(images)) if groups is None else groups, 200, 0)
    return explanation.randomise(model, "0", batches(images, [1] * len(images)), masks, shuffles, drawn, 0)


def test_a_map_that_survives_the_shuffling_shows_it():
    images, masks = bright_tumours()
    falling = shuffle(network([[1.0, 1.0], [1.0, 1.0]]), images, masks, 3)
    assert falling["shuffled"].tolist() == [0, 1] and falling["layer"].tolist() == ["none", "3"]
    assert (falling.drop(columns=["shuffled", "layer", "pointing_low"]) == 1).all(axis=None)


def test_a_map_that_the_weights_make_falls_with_them():
    images, masks = bright_tumours()
    trained = network([[-1.0, -1.0], [-1.0, 1.0]])
    falling = shuffle(trained, images, masks, 8)
    assert (falling.loc[0, ["likeness", "pointing", "overlap"]] == 1).all()
    assert (falling.loc[1, ["likeness", "pointing", "overlap"]] < 0.9).all()
    assert torch.equal(trained[3].weight, torch.tensor([[-1.0, -1.0], [-1.0, 1.0]]))  # a copy was shuffled
    assert falling.equals(shuffle(trained, images, masks, 8))


def test_the_fall_has_an_interval_over_groups():
    images, masks = bright_tumours()
    masks[2:] = masks[2:, ::-1, ::-1]  # the maps of two of the four now point elsewhere
    falling = shuffle(network([[-1.0, -1.0], [-1.0, 1.0]]), images, masks, 8)
    low, high = proportion_confint(2, 4, method="wilson")
    assert falling.loc[0, ["pointing", "pointing_low", "pointing_high"]].tolist() == pytest.approx(
        [0.5, low, high], abs=5e-5
    )
    # The overlap is 1 for two images and 0 for two: its mean over a resample is the share of the first two in it.
    counts = np.random.default_rng(0).multinomial(4, [0.25] * 4, 200)
    low, high = np.quantile(counts[:, :2].sum(1) / 4, (0.025, 0.975))
    assert falling.loc[0, ["overlap", "overlap_low", "overlap_high"]].tolist() == [0.5, low, high]
    # One group is drawn every time: nothing varies.
    together = shuffle(network([[-1.0, -1.0], [-1.0, 1.0]]), images, masks, 8, np.zeros(4)).iloc[-1]
    for name in ("likeness", "overlap"):
        assert together[f"{name}_low"] == together[f"{name}_high"] == together[name] == falling.iloc[-1][name]
    flat = explanation.all_shuffled(falling)
    assert len(flat) == 9 and flat["overlap_shuffled_high"] == falling.iloc[-1]["overlap_high"]


def test_without_masks_only_the_likeness_is_measured():
    falling = shuffle(network([[1.0, 2.0]] * 2), np.ones((2, 4, 4)), None, 1)
    assert falling.columns.tolist() == ["shuffled", "layer", "likeness", "likeness_low", "likeness_high"]


@pytest.mark.parametrize("p", [0, 0.2, 0.5])
def test_the_dropout_that_is_set_is_drawn_and_named(p):
    titles = [axis.get_title() for axis in dropout_sums(p, seed=0).axes]
    assert [title.split(":")[0] for title in titles if "the one set" in title] == [f"p = {p:g}, the one set"]
    assert len(titles) == (4 if p == 0.5 else 5)
    assert ("mean 6.60, deviation 0.00" in titles[0]) == (p == 0)
