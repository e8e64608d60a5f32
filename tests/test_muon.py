import numpy as np
import pytest
import torch
from torch import nn

from braintumor import muon
from braintumor.muon import Muon, orthogonal, orthogonal_together


def random_matrix(shape, singular_values):
    """A matrix with singular vectors drawn at random."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, side)))[0] for side in shape)
    own = np.zeros(shape)
    np.fill_diagonal(own, singular_values)
    return torch.from_numpy(left @ own @ right).float()


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32), (1, 25)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    given = np.geomspace(0.02, 1, min(shape))
    matrix = 7 * random_matrix(shape, given)
    made = orthogonal(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    between = left.T @ made @ right.T  # diagonal, where the singular vectors are the same
    values = between.diagonal()
    assert torch.allclose(between, values.diag(), atol=1e-4)
    # The quintic of each singular value by itself, four times, the largest first.
    expected = np.sort(given)[::-1] / np.linalg.norm(given)
    for _ in range(4):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    assert values.numpy() == pytest.approx(expected, abs=1e-3)
    assert values.min() > 0.68 and values.max() < 1.21


def test_nothing_stays_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_matrices_of_all_shapes_together_become_what_each_becomes_alone():
    torch.manual_seed(0)
    shapes = [(4, 9), (8, 36), (4, 36), (36, 8), (8, 4), (8, 8), (1, 5), (8, 72)]
    matrices = [torch.randn(shape) for shape in shapes]
    for made, matrix in zip(orthogonal_together(matrices), matrices, strict=True):
        assert torch.allclose(made, orthogonal(matrix), atol=1e-5)


def test_steps_together_are_those_of_each_weight_alone(monkeypatch):
    numbers = []

    def counted(matrices):
        numbers.append(len(matrices))
        return orthogonal_together(matrices)

    monkeypatch.setattr(muon, "orthogonal_together", counted)
    torch.manual_seed(0)
    alone, together = (
        [nn.Parameter(torch.ones(shape)) for shape in ((8, 3, 3, 3), (16, 8, 1, 1))] for _ in range(2)
    )
    for weight in alone + together:
        weight.data = weight.data.to(memory_format=torch.channels_last)
    ones = [Muon([{"params": [weight], "lr": 0.1, "orthogonal": True}]) for weight in alone]
    other = Muon([{"params": together, "lr": 0.1, "orthogonal": True}], together=True)
    for _ in range(3):
        for own, theirs in zip(alone, together, strict=True):
            own.grad = torch.randn_like(own)
            theirs.grad = own.grad.clone()
        for one in ones:
            one.step()
        other.step()
    assert numbers == [2, 2, 2]
    for own, theirs in zip(alone, together, strict=True):
        assert torch.allclose(own, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (3, 8)])
def test_steps_go_where_torchs_muon_goes(shape):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(shape)) for _ in range(2))
    one = Muon([{"params": [ours], "lr": 0.01, "orthogonal": True}])
    # Whose step is larger by sqrt(rows / columns) where there are more rows.
    other = torch.optim.Muon([theirs], 0.01, 0.0, 0.9, ns_steps=4, adjust_lr_fn="original")
    for _ in range(4):
        before = [ours.detach() * (shape[0] ** 0.5 / ours.detach().norm()), theirs.detach().clone()]
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
        step, torchs = ours.detach() - before[0], theirs.detach() - before[1]
        torchs /= max(1, shape[0] / shape[1]) ** 0.5
        assert step.norm() > 0.01
        assert torch.allclose(step, torchs, atol=5e-4)  # torch's iterates in bfloat16


def test_a_convolutions_filters_have_a_mean_squared_length_of_one_before_each_step():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = Muon([{"params": [weight], "lr": 0.0, "orthogonal": True}])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert weight.detach().square().sum().item() / 8 == pytest.approx(1, abs=1e-5)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "share"), [((8, 4, 3, 3), 1.0), ((32, 16, 1, 1), 0.5**0.5), ((36, 1, 3, 3), 0.5)]
)
def test_a_step_changes_about_the_rates_share_and_less_of_many_small_filters(shape, share):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    optimizer = Muon([{"params": [weight], "lr": 0.05, "orthogonal": True}])
    before = weight.detach() / weight.detach().norm() * shape[0] ** 0.5
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert 0.68 < (weight.detach() - before).norm().item() / before.norm().item() / (0.05 * share) < 1.21


def test_other_weights_take_the_steps_of_sgd():
    torch.manual_seed(0)
    ours, theirs, beside = (nn.Parameter(torch.ones(4)) for _ in range(3))
    convolution = nn.Parameter(torch.randn(2, 1, 3, 3))
    one = Muon(
        [
            {"params": [convolution], "lr": 0.1, "orthogonal": True},
            {"params": [ours], "lr": 0.1, "weight_decay": 0.01, "orthogonal": False},
        ]
    )
    other = torch.optim.SGD([theirs], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        gradient = torch.randn(4)
        ours.grad, theirs.grad, convolution.grad = gradient.clone(), gradient.clone(), torch.randn(2, 1, 3, 3)
        one.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.equal(ours, beside)


def test_a_frozen_convolution_stays_as_it_is():
    weight = nn.Parameter(torch.randn(2, 1, 3, 3))
    before = weight.detach().clone()
    Muon([{"params": [weight], "lr": 0.1, "orthogonal": True}]).step()
    assert torch.equal(weight, before)
