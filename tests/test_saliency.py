"""Maps whose peak, overlap and border are known by hand, and a network small enough to do Grad-CAM on paper."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from braintumor import saliency
from braintumor.batches import Batches
from braintumor.explanation import measure_borders


def batches(images, labels, batch_size=2):
    """Make batches whose pixels are the numbers of the images, without normalisation."""
    rows = np.arange(len(images))
    return Batches(np.array(images, np.uint8), rows, labels, batch_size, 0.0, 1 / 255, torch.device("cpu"))


def square(*boxes, size=10):
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


class Linear(nn.Module):
    """Two channels, the image and its negative, and a linear layer over them: 2 classes of 2 x 2 x 2 weights."""

    def __init__(self, weights):
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.head = nn.Linear(8, 2)
        self.head.weight.data = torch.tensor(weights, dtype=torch.float32).reshape(2, 8)

    def forward(self, images):
        return self.head(self.maps(images).flatten(1))


def test_gradcam_is_the_one_on_paper():
    # Class 0: channel weights, the means of the gradients, are 2 and 0.5; class 1: -1 and 3.
    model = Linear([[1, 3, 1, 3, 0, 0, 1, 1], [-1, -1, -1, -1, 3, 3, 3, 3]])
    images = [[[10, 20], [0, 4]], [[1, 2], [3, 4]], [[1, 2], [3, 4]]]
    maps = saliency.gradcam(model, "maps", batches(images, [0, 0, 1]))
    # (2 - 0.5) * image for class 0; (-1 - 3) * image, nowhere positive, for class 1.
    assert maps.tolist() == [[[15, 30], [0, 6]], [[1.5, 3], [4.5, 6]], [[0, 0], [0, 0]]]


def test_gradcam_switches_dropout_off():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9), nn.Flatten(), nn.Linear(8, 2)).train()
    images = np.arange(16).reshape(4, 2, 2)
    first, again = (saliency.gradcam(model, "0", batches(images, [1] * 4)) for _ in range(2))
    assert (first == again).all()


def test_a_peak_is_the_middle_of_its_cell_and_a_map_of_zeros_has_none():
    maps = np.zeros((3, 2, 4), np.float32)
    maps[0, 1, 2] = 5
    maps[1, 0, :2] = 1  # the first of equal ones
    assert saliency.peaks(maps)[:2].tolist() == [[0.625, 0.75], [0.125, 0.25]]
    assert np.isnan(saliency.peaks(maps)[2]).all()


def test_the_pointing_game_on_a_masks_edges():
    masks = square(*[(2, 4, 5, 6)] * 6)
    places = [[0.2, 0.4], [0.199, 0.4], [0.499, 0.599], [0.5, 0.5], [1.0, 1.0], [np.nan, np.nan]]
    inside = saliency.points_inside(np.array(places), masks)
    assert inside.tolist() == [True, False, True, False, False, False]


def test_overlaps_by_hand():
    maps = np.zeros((2, 10, 10), np.float32)
    maps[0, :2, :5] = 0.4  # 10 cells, of which 4 are in the mask
    maps[0, :2, :2] = 1
    overlap = saliency.overlaps(maps, square((0, 0, 2, 4), (5, 5, 6, 6)))
    at = {round(float(threshold), 2): column for column, threshold in enumerate(saliency.THRESHOLDS)}
    assert overlap[0, at[0.4]] == 4 / 14  # 10 + 8 - 4
    assert overlap[0, at[0.45]] == overlap[0, at[0.95]] == 4 / 8
    assert (overlap[1] == 0).all()
    best, threshold = saliency.best_overlaps(maps, square((0, 0, 2, 4), (5, 5, 6, 6)))
    assert threshold == pytest.approx(0.45) and best.tolist() == [0.5, 0]


@pytest.mark.parametrize("size", [10, 160])
def test_an_even_maps_border_is_its_area(size):
    maps = np.ones((1, size, size), np.float32)
    assert saliency.border_shares(maps, 0.1)[0] == pytest.approx(1 - 0.8**2)
    assert saliency.border_shares(maps, 0.2)[0] == pytest.approx(1 - 0.6**2)


def test_border_shares_by_hand():
    maps = np.zeros((3, 10, 10), np.float32)
    maps[0, 0, 5], maps[0, 1, 5], maps[0, 9, 9] = 1, 2, 1
    maps[1, 5, 5] = 3
    shares = saliency.border_shares(maps, 0.1)
    assert shares[:2].tolist() == [0.5, 0.0]
    assert np.isnan(shares[2])


def test_a_border_is_a_pixel_wide_at_least():
    assert saliency.border_shares(np.ones((1, 10, 10), np.float32), 0.01)[0] == pytest.approx(0.36)


def test_an_enlarged_map_keeps_its_peak_and_has_1_there():
    maps = np.zeros((2, 5, 5), np.float32)
    maps[0, 1, 3], maps[0, 4, 4] = 8, 2
    large = saliency.enlarge(maps, 50)
    assert large.shape == (2, 50, 50)
    assert large[0].max() == 1 and (large[0, 14:16, 34:36] > 0.9).all()
    # Ten pixels a cell: the nearest to a cell's middle are 0.05 cells off on both axes.
    assert large[0, 49, 49] == pytest.approx(2 / (8 * 0.95**2))
    assert (large[1] == 0).all()


def test_likeness_is_spearmans():
    first, second = np.random.default_rng(0).integers(0, 9, (2, 6, 5, 5)).astype(np.float32)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    assert saliency.likeness(first, second) == pytest.approx(expected)
    assert saliency.likeness(first, first) == pytest.approx(np.ones(6))
    assert saliency.likeness(first, np.ones_like(first)).tolist() == [0] * 6


class Region(nn.Module):
    """Keeps a part of the image and nothing else."""

    def __init__(self, part):
        super().__init__()
        self.register_buffer("part", torch.from_numpy(part).float())

    def forward(self, images):
        return images * self.part


def only(part):
    """Build a network that tells its classes apart by the brightness of a part of the image."""
    head = nn.Linear(400, 2, bias=False)
    head.weight.data = torch.tensor([[-1.0], [1.0]]).repeat(1, 400)
    return nn.Sequential(Region(part), nn.Flatten(), head)


def test_a_network_that_only_looks_at_the_border_is_caught():
    images = np.random.default_rng(0).integers(1, 255, (6, 20, 20))
    table = pd.DataFrame({"class": ["a", "b"] * 3, "prediction": "b", "group": range(6)})
    inner = square((2, 2, 18, 18), size=20)[0]
    shares = {}
    for name, part in (("border", ~inner), ("centre", inner), ("all", np.ones((20, 20), bool))):
        maps = saliency.gradcam(only(part), "0", batches(images, [1] * 6))
        shares[name] = measure_borders(table, maps, 20, 0.1, 20, seed=0)
    assert shares["border"]["border_share"] == shares["border"]["border_share_a"] == 1
    assert shares["border"]["border_share_low"] == shares["border"]["border_share_high"] == 1
    assert shares["centre"]["border_share"] == 0
    assert shares["all"]["border_share"] == pytest.approx(shares["all"]["border_share_even"], abs=0.03)
    assert shares["border"]["border_share_even"] == pytest.approx(0.36)
