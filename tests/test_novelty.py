import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from braintumor.deployed import SEEN, Describer, describe_image
from braintumor.models import Architecture
from braintumor.novelty import (
    fit_novelty,
    noise_squares,
    phantom_squares,
    score_novelty,
    shuffled_blocks,
    told_apart,
)


def clouds(rng, n, d=6):
    """Two classes of n points each, with scales that differ from feature to feature."""
    labels = np.repeat([0, 1], n)
    points = (rng.normal(size=(2 * n, d)) + 5 * labels[:, None]) * np.logspace(-2, 2, d)
    return points.astype(np.float32), labels


def test_novelty_is_the_mahalanobis_distance_from_the_nearest_class_as_a_share_of_the_limit():
    rng = np.random.default_rng(0)
    (points, labels), (held_out, _) = clouds(rng, 200), clouds(rng, 50)
    novelty = fit_novelty(points, labels, held_out, 0.1)
    deviations = points.std(0)
    means = np.stack([points[labels == k].mean(0) for k in (0, 1)]) / deviations
    inverse = LedoitWolf(assume_centered=True).fit(points / deviations - means[labels]).precision_
    expected = cdist(held_out / deviations, means, "mahalanobis", VI=inverse).min(1)
    values = novelty(torch.tensor(held_out)).numpy()
    assert values == pytest.approx(expected / np.quantile(expected, 0.9), rel=1e-4)
    assert (values > 1).sum() == 10  # of 100


def test_more_features_than_images_and_constant_ones_are_no_hindrance():
    rng = np.random.default_rng(0)
    points, labels = clouds(rng, 20, 300)
    points[:, 7] = 3
    novelty = fit_novelty(points, labels, points, 0.5)
    assert novelty.projection.shape == (300, 39)
    near, far = points[:1], points[:1] + 50 * points.std(0)
    assert novelty(torch.tensor(near)) < 2 < novelty(torch.tensor(far))


def test_shuffled_blocks_are_the_same_blocks_elsewhere():
    squares = np.random.default_rng(0).integers(0, 256, (2, 10, 10), np.uint8)
    shuffled = shuffled_blocks(squares, seed=1)

    def blocks(image):
        return sorted(image[y : y + 2, x : x + 2].tobytes() for y in range(0, 8, 2) for x in range(0, 8, 2))

    for before, after in zip(squares, shuffled, strict=True):
        assert blocks(before) == blocks(after) and (before != after).any()
        assert (before[8:] == after[8:]).all() and (before[:, 8:] == after[:, 8:]).all()
    assert (shuffled_blocks(squares, seed=1) == shuffled).all()
    assert (shuffled_blocks(squares, seed=2) != shuffled).any()


def test_noise_is_of_five_kinds():
    squares, groups = noise_squares(11, 64, 0.5, 0.1, seed=0)
    assert squares.shape == (11, 64, 64) and squares.dtype == np.uint8
    assert len(set(groups)) == 11
    uniform, normal, dark, disc, even = (squares[kind::5] / 255 for kind in range(5))
    assert uniform.std() == pytest.approx(12**-0.5, abs=0.005)
    assert (normal.mean(), normal.std()) == (pytest.approx(0.5, abs=0.005), pytest.approx(0.1, abs=0.005))
    assert dark.mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), abs=0.001)
    assert disc[:, 0, 0].max() == 0 and (disc > 0).mean() == pytest.approx(np.pi * 0.4**2, abs=0.02)
    assert [image.std() for image in even] == [0, 0] and [image.max() for image in even] == [0, 1]


def test_phantoms_are_preprocessed_like_the_rest_and_come_by_patient():
    squares, groups = phantom_squares(8, 24, crop=False, letterbox=False, seed=0)
    assert squares.shape == (len(groups), 24, 24)
    assert sorted(set(groups)) == [f"p00{number}" for number in range(1, 9)]


def test_scores_are_areas_and_shares():
    known, new = np.array([0.2, 0.9, 1.5, 0.4]), np.array([0.8, 3.0])
    scores = score_novelty(known, np.arange(4), {"noise": (new, np.array([4, 5]))}, 100, 0)
    # The area is the share of pairs in the right order, which Mann and Whitney count.
    assert scores["novelty_auroc_noise"] == mannwhitneyu(new, known).statistic / 8
    for name, successes, n in (("test", 1, 4), ("noise", 1, 2)):
        low, high = proportion_confint(successes, n, method="wilson")
        assert scores[f"novelty_flagged_{name}"] == successes / n
        assert scores[f"novelty_flagged_{name}_low"] == pytest.approx(low, abs=5e-5)
        assert scores[f"novelty_flagged_{name}_high"] == pytest.approx(high, abs=5e-5)
    assert len(scores) == 9


def test_the_interval_of_an_area_draws_whole_groups():
    rng = np.random.default_rng(0)
    people = rng.normal(0, 1, 20)
    known = np.repeat(people, 10) + rng.normal(0, 0.01, 200)  # ten alike of each person
    new = rng.normal(1, 1, 200)
    names = np.arange(200, 400)
    by_image, by_person = (
        told_apart(known, groups, new, names, 500, 0) for groups in (np.arange(200), np.repeat(np.arange(20), 10))
    )
    assert by_image[0] == by_person[0] == pytest.approx(roc_auc_score(np.repeat([0, 1], 200), [*known, *new]))
    width = [high - low for _, low, high in (by_image, by_person)]
    # Twenty people's mean deviates by the root of ten more than that of two hundred; the new images add theirs.
    assert width[1] > 1.5 * width[0]
    # What comes of the same test images is drawn with them: both are there, or neither.
    paired = told_apart(known[:1], np.array(["a"]), new[:1], np.array(["a"]), 50, 0)
    assert paired[0] == paired[1] == paired[2]


def test_an_image_is_described_by_its_grey_values_and_those_beside_them():
    image = np.zeros((16, 16))
    image[4, 5] = 1  # 1 from four neighbours, two of which are the ones that it is compared with itself
    black, dot = describe_image(torch.tensor(np.stack([np.zeros((16, 16)), image])[:, None])).numpy()
    assert black == pytest.approx([np.log(1 / 255)] * 3 + [0] * 67)
    mean, deviation, rough = 1 / 256, image.std(), 4 / 256
    assert dot[:3] == pytest.approx(np.log(np.array([mean, deviation, rough]) + 1 / 255))
    # The differences stand with the upper or left pixel of the two: (4, 5) twice, (3, 5) and (4, 4).
    assert dot[3:6] == pytest.approx([rough, rough / (deviation + 1 / 255), 3 / 4])
    assert dot[6:].reshape(8, 8)[2, 2] == pytest.approx(1 / 4) and dot[6:].sum() == pytest.approx(1 / 4)


@pytest.mark.parametrize("size", [16, 20, 31, 48, 63, 160])
def test_an_image_of_any_size_is_described_by_as_many_numbers(size):
    assert describe_image(torch.rand(2, 1, size, size)).shape == (2, SEEN)


def test_images_of_nothing_are_told_by_how_they_are_described_and_not_by_block_means_alone():
    rng = np.random.default_rng(0)
    heads = phantom_squares(60, 48, crop=False, letterbox=False, seed=0)[0]
    heads = np.rint(heads * rng.uniform(0.3, 1, (len(heads), 1, 1))).astype(np.uint8)  # some are dark
    rng.shuffle(heads)
    noise, _ = noise_squares(100, 48, heads.mean() / 255, heads.std() / 255, seed=1)
    known, held_out, new = (
        describe_image(torch.tensor(squares)[:, None] / 255).numpy() for squares in (heads[90:], heads[:90], noise)
    )

    def flagged(part):
        novelty = fit_novelty(known[:, part], np.zeros(len(known), int), held_out[:, part], 0.02)
        marked = novelty(torch.tensor(new[:, part])).numpy() > 1
        return [marked[kind::5].mean() for kind in range(5)]

    assert flagged(slice(None)) == [1, 1, 1, 1, 1]
    dark = flagged(slice(-64, None))[2]
    assert dark < 0.5


@pytest.mark.parametrize("name", ["resnet", "cnn2", "torchvision/squeezenet1_1", "torchvision/vit_b_16"])
def test_a_describer_gives_the_networks_logits_and_what_its_last_layer_was_given(name):
    torch.manual_seed(0)
    model = Architecture.named(name, None, None, 0.5, 64, 3).build().eval()
    describer = Describer(model, 0.2, 0.3, 3)
    squares = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits, features = describer(squares)
        expected = model((squares / 255 - 0.2) / 0.3)
    assert logits.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    assert features[:, -SEEN:].numpy() == pytest.approx(describe_image(squares / 255).numpy(), abs=1e-6)
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)][-1]
    if isinstance(last, torch.nn.Linear):
        again = last(features[:, :-SEEN])
        assert again.detach().numpy() == pytest.approx(logits.numpy(), abs=1e-5)
    else:
        assert features.shape == (2, last.in_channels + SEEN)
