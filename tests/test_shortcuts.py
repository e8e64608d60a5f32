"""A model that looks at the border only has to be found out, and one that looks at the centre has not."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from braintumor.batches import Batches
from braintumor.intervals import wilson_interval
from braintumor.shortcuts import (
    baseline_metrics,
    border_features,
    intensity_features,
    predict_shortcuts,
    score_shortcuts,
    size_features,
)
from braintumor.training import predict
from braintumor.views import AveragedViews, BorderOnly, choose_views

SIZE = 40
CPU = torch.device("cpu")


class Looks(nn.Module):
    """A network that calls an image the second class where a part of it is bright."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, images):
        bright = images[:, 0][:, self.part, self.part].mean(dim=(1, 2))
        return torch.stack([-bright, bright], dim=1)


CORNER, CENTRE = Looks(slice(0, 4)), Looks(slice(15, 25))


@pytest.fixture
def dataset():
    """Noise of two classes: both the corner and the centre are brighter in the second one."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 150))
    images = rng.integers(80, 120, (300, SIZE, SIZE), np.uint8)
    grey = np.where(labels, 160, 40)[:, None, None]
    images[:, :4, :4] = images[:, 15:25, 15:25] = grey
    return images, labels


def accuracy(model, images, labels):
    batches = Batches(images, np.arange(len(images)), labels, 64, images.mean() / 255, images.std() / 255, CPU)
    return (predict(model, batches).argmax(1).numpy() == labels).mean()


def test_a_network_that_looks_at_the_border_keeps_its_accuracy_without_the_centre(dataset):
    assert accuracy(CORNER, *dataset) == accuracy(CENTRE, *dataset) == 1
    assert accuracy(BorderOnly(CORNER, 0.1), *dataset) == 1
    assert accuracy(BorderOnly(CENTRE, 0.1), *dataset) == 0.5


def test_a_class_that_the_border_gives_away_is_found_by_the_baseline(dataset):
    images, labels = dataset
    manifest = pd.DataFrame({"class": np.array(["a", "b"])[labels], "width": 512, "height": 512, "mode": "L"})
    rows = np.arange(300)

    def border_accuracy(images):
        guesses = predict_shortcuts(manifest, images, rows[:200], rows[200:], 0.1, seed=0, workers=1)
        return (guesses["border"] == manifest["class"].to_numpy()[200:]).mean()

    assert border_accuracy(images) == 1
    hidden = images.copy()
    hidden[:, :4, :4] = 100  # the centre still gives it away
    assert border_accuracy(hidden) < 0.7


def test_the_baselines_see_their_own_features_and_the_training_rows_only():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"])[rng.permutation(np.repeat([0, 1], 60))]
    manifest = pd.DataFrame(
        {"class": labels, "width": np.where(labels == "a", 512, 300), "height": 300, "mode": "L"}
    )
    images = rng.integers(0, 255, (120, 24, 24), np.uint8)
    trained, tested = np.arange(80), np.arange(80, 120)
    guesses = predict_shortcuts(manifest, images, trained, tested, 0.1, seed=0, workers=1)
    assert (guesses["size"] == labels[tested]).all()
    assert (guesses["intensity"] == labels[tested]).mean() < 0.75
    # What the test rows are called changes no guess.
    manifest.loc[tested, "class"] = "b"
    again = predict_shortcuts(manifest, images, trained, tested, 0.1, seed=0, workers=2)
    assert all((guesses[name] == again[name]).all() for name in guesses)
    majority = pd.Series(labels[:80]).mode()[0]
    assert set(guesses["majority"]) == {majority}


def test_intensity_features_know_no_places():
    image = np.random.default_rng(0).integers(0, 255, (1, 12, 12), np.uint8)
    shuffled = np.random.default_rng(1).permutation(image.ravel()).reshape(image.shape)
    features = intensity_features(image)
    assert features == pytest.approx(intensity_features(shuffled))
    assert features[0, :2] == pytest.approx([image.mean(), image.std()])
    assert features[0, 2:].sum() == pytest.approx(1)
    assert features[0, 2] == pytest.approx((image < 16).mean())


@pytest.mark.parametrize("size", [16, 40, 96, 161])
def test_border_features_do_not_change_with_the_centre(size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, size, size), np.uint8)
    images[1] = images[0]
    width = max(1, round(0.1 * size))
    images[1, width:-width, width:-width] = 255
    features = border_features(images, 0.1)
    assert (features[0] == features[1]).all()
    images[1, 0, 0] ^= 255
    assert (border_features(images, 0.1)[0] != border_features(images, 0.1)[1]).sum() == 1
    assert border_features(np.full((1, size, size), 7, np.uint8), 0.1) == pytest.approx(7)


def test_size_features_are_width_height_ratio_and_mode():
    manifest = pd.DataFrame({"width": [512, 300], "height": [256, 300], "mode": ["L", "RGB"]})
    assert size_features(manifest).tolist() == [[512, 256, 2, 1, 0], [300, 300, 1, 0, 1]]


def test_baselines_are_scored_side_by_side_and_on_tumour_or_none():
    actual = np.array(["x", "y", "none", "none"], object)
    predicted = {"size": np.array(["y", "y", "none", "x"], object), "network": actual}
    table = score_shortcuts(actual, predicted, "none").set_index("baseline")
    assert table["accuracy"].tolist() == [0.5, 1]
    assert table["detection"].tolist() == [0.75, 1]
    scores = baseline_metrics(table.reset_index())
    low, high = wilson_interval(3, 4)
    assert (scores["detection_size_low"], scores["detection_size_high"]) == (round(low, 4), round(high, 4))
    assert scores["accuracy_network"] == 1
    assert "detection" not in score_shortcuts(actual, predicted, None)


def test_a_mirrored_view_is_averaged_as_a_probability():
    class Column(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0, 0, 0], images[:, 0, 0, -1] * 0], dim=1)

    images = torch.zeros(1, 1, 4, 4)
    images[..., 0], images[..., -1] = 2, -1
    log_mean = AveragedViews(Column(), True, [1], black=0.0)(images)
    expected = (torch.tensor([[2.0, 0]]).softmax(1) + torch.tensor([[-1.0, 0]]).softmax(1)) / 2
    assert log_mean.exp().numpy() == pytest.approx(expected.numpy())


def test_a_smaller_view_has_black_around_it_and_a_larger_one_is_cut():
    class Border(nn.Module):
        def forward(self, images):
            return torch.stack([images[:, 0, 0, 0], images[:, 0, 4, 4]], dim=1)

    def seen(scale):
        model = AveragedViews(Border(), False, [scale], black=-3.0)
        odds = model(torch.full((1, 1, 8, 8), 2.0))[0]
        return float(odds[0] - odds[1])  # of corner and centre

    assert seen(0.5) == pytest.approx(-5)
    assert seen(2) == pytest.approx(0)
    # A view of its own size is the image itself.
    image = torch.rand(1, 1, 8, 8)
    plain = Border()(image).log_softmax(1)
    assert AveragedViews(Border(), False, [1], black=-3.0)(image).numpy() == pytest.approx(plain.numpy())


def test_the_views_that_are_asked_for_are_named():
    assert choose_views(False, []) == {}
    assert choose_views(True, []) == {"flips": (True, [1])}
    assert list(choose_views(True, [0.9, 1])) == ["flips", "scales", "flips_scales"]
    assert choose_views(False, [0.9, 1]) == {"scales": (False, [0.9, 1])}
