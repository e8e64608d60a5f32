import math

import numpy as np
import pytest
import torch
from torch import nn

from braintumor.batches import Augmentation, Batches
from braintumor.errors import UserError
from braintumor.models import Architecture
from braintumor.training import (
    Recipe,
    choose_device,
    choose_precision,
    epoch_scores,
    fit,
    learning_rate,
    make_optimizer,
    predict,
)

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=6, optimizer="sgd", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=5e-4, label_smoothing=0.1,
    patience=None, seed=3,
)  # fmt: skip
AUGMENTATION = Augmentation(flip=0.5, shift=0.05, rotation=5, brightness=0.1)


def make_sets(n=320, size=32):
    """Noise with a bright square in the upper or lower half, which is the class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (n, size, size), np.uint8)
    labels = np.arange(n) % 2
    for image, label in zip(images, labels, strict=True):
        top = 4 + 16 * label
        image[top : top + 8, 12:20] += 150
    rows = np.arange(n)
    return [
        Batches(images, part, labels[part], 16, 0.2, 0.2, CPU) for part in (rows[: n * 3 // 4], rows[n * 3 // 4 :])
    ]


def train(recipe=RECIPE, precision=torch.float32, sets=None):
    choose_device("cpu", 2)
    torch.manual_seed(recipe.seed)
    model = Architecture.named("resnet", [8, 16], None, 0.1, 32, 2).build()
    sets = sets or make_sets()
    epochs = list(fit(model, *sets, AUGMENTATION, recipe, precision))
    return model, epochs, sets


def replace(**changes):
    return Recipe(**RECIPE.__dict__ | changes)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_network_learns_what_there_is_to_learn(optimizer):
    lr = {"sgd": 0.1, "adamw": 0.01}[optimizer]
    _, epochs, _ = train(replace(optimizer=optimizer, lr=lr, epochs=8))
    assert max(epoch.validation.accuracy for epoch in epochs) == 1.0


def test_bfloat16_learns_too():
    _, epochs, _ = train(replace(lr=0.1, epochs=8), torch.bfloat16)
    assert max(epoch.validation.accuracy for epoch in epochs) == 1.0


def test_equal_seeds_give_equal_weights_and_scores_and_another_seed_others():
    (first, scores, _), (again, same, _), (other, _, _) = train(), train(), train(replace(seed=4))
    assert scores == same
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_network_ends_with_the_weights_of_its_best_epoch():
    model, epochs, (_, validation) = train(replace(epochs=4, lr=0.02))
    best = [epoch for epoch in epochs if epoch.best][-1]
    assert best.validation.accuracy == max(epoch.validation.accuracy for epoch in epochs)
    logits = predict(model, validation)
    assert (logits.argmax(1) == validation.labels).float().mean().item() == pytest.approx(best.validation.accuracy)
    assert nn.functional.cross_entropy(logits, validation.labels).item() == pytest.approx(
        best.validation.loss, abs=1e-5
    )


def test_patience_stops_after_so_many_epochs_without_a_better_one():
    # At a rate of nothing no epoch is better than the first but for batch norm's averages.
    _, epochs, _ = train(replace(lr=1e-12, epochs=40, patience=3))
    best = max(epoch.number for epoch in epochs if epoch.best)
    assert len(epochs) == best + 3 < 40


def test_the_rate_warms_up_and_falls_along_a_cosine():
    rates = [learning_rate(step, 100, 0.4, "cosine", 0.2) for step in range(100)]
    assert np.diff(rates[:21]) == pytest.approx(rates[0])  # even steps up from 0 before the first
    assert rates[20] == 0.4 == max(rates)
    assert rates[60] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert 0 < rates[99] < 0.001
    assert [learning_rate(step, 10, 0.3, "constant", 0) for step in range(10)] == [0.3] * 10


def test_the_rate_of_each_epoch_is_told():
    _, epochs, sets = train(replace(epochs=3))
    steps = sets[0].steps
    expected = [learning_rate(steps * n - 1, 3 * steps, 0.05, "cosine", 0.1) for n in (1, 2, 3)]
    assert [epoch.lr for epoch in epochs] == expected


def test_a_training_that_diverges_is_an_error():
    with pytest.raises(UserError, match=r"diverged.*lower train\.lr"):
        train(replace(lr=1e12))


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    for name in ("sgd", "adamw"):
        decayed, free = make_optimizer(model, name, 0.1).param_groups
        assert [weight.ndim for weight in decayed["params"]] == [4, 2]
        assert [weight.ndim for weight in free["params"]] == [1, 1, 1, 1]
        assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_scores_of_an_epoch_are_macro_averages():
    # Class 0: 2 of 3 found, 2 of 2 claimed; class 1: 1 of 1 found, 1 of 2 claimed.
    scores = epoch_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 0.5)
    assert (scores.loss, scores.accuracy) == (0.5, 0.75)
    assert scores.precision == pytest.approx((1 + 1 / 2) / 2)
    assert scores.recall == pytest.approx((2 / 3 + 1) / 2)


def test_a_gpu_that_is_not_there_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device=cuda: torch finds no GPU"):
        choose_device("cuda", 2)
    assert choose_device("auto", 2).type == "cpu"


def test_precision_is_what_is_asked_for_or_what_the_hardware_has(monkeypatch):
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("auto", CPU) == expected
