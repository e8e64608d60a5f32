"""Muon, an optimizer that lets every direction of a convolution's weights move alike."""

import torch
from torch import Tensor, nn

MOMENTUM = 0.9
# Of the iteration for `orthogonal`: the quintic of Jordan's Muon, steep at 0, so that it is soon near 1, where it
# never settles.
QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 4


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1, and leave its singular vectors as they are.

    Newton-Schulz iteration, which takes matrix products only, so that it runs within a CUDA graph.

    Parameters
    ----------
    matrix : Tensor of shape (rows, columns)
        Of a norm far above 1e-7; all zeros stay all zeros.

    Returns
    -------
    Tensor of shape (rows, columns)
        Its singular values are between 0.68 and 1.21 where those of `matrix` are 0.0052 of its norm or more, and
        lower where they are less.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    a, b, c = QUINTIC
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum whose steps for some weights are made orthogonal.

    Muon (K. Jordan 2024, kellerjordan.github.io/posts/muon), as his cifar10-airbench (arXiv:2404.00498) has it:
    a convolution's weights are a matrix with one row for each filter, those of all groups together, and before
    each step the matrix is scaled so that its rows have a mean squared length of 1. The rate is then about the
    share of the weights that a step changes, and sqrt(columns / rows) of that where there are more filters than
    weights in each. Where a batch norm follows, the scale makes no difference to what the network computes;
    elsewhere it fixes the size of what the convolution gives. The other weights take SGD's steps.

    torch.optim.Muon takes no convolutions, and reads the learning rate from the GPU at each step.

    Parameters
    ----------
    groups : list of dict
        As of torch.optim.SGD, each with ``orthogonal``: whether its weights, which have two dimensions or more and
        are not all 0, take orthogonal steps.
    """

    def __init__(self, groups: list[dict]) -> None:
        plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        groups = [group | plain if group["orthogonal"] else group for group in groups]
        super().__init__(groups, momentum=MOMENTUM, nesterov=True, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step by the gradients, which are changed on the way."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else []:
                if weight.grad is not None:
                    self._orthogonalise(weight)
        super().step()

    def _orthogonalise(self, weight: nn.Parameter) -> None:
        """Scale a weight, and put its next step in the place of its gradient."""
        state, gradient = self.state[weight], weight.grad
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
        nesterov = gradient + MOMENTUM * momentum
        weight.mul_(len(weight) ** 0.5 / weight.norm())
        gradient.copy_(orthogonal(nesterov.flatten(1)).view_as(weight))
