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
    matrix : Tensor of shape (..., rows, columns)
        One or a stack of them, each of a norm far above 1e-7; all zeros stay all zeros.

    Returns
    -------
    Tensor of shape (..., rows, columns)
        Its singular values are between 0.68 and 1.21 where those of `matrix` are 0.0052 of its norm or more, and
        lower where they are less.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonal(matrix.mT).mT
    a, b, c = QUINTIC
    matrix = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = matrix @ matrix.mT
        matrix = a * matrix + (b * square + c * square @ square) @ matrix
    return matrix


def orthogonal_together(matrices: list[Tensor]) -> list[Tensor]:
    """Return what `orthogonal` makes of matrices of any shapes, in few large operations, which a GPU is faster at.

    Those with equally long shorter sides go through it as one stack, filled up with zeros, which stay zeros.
    """
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    stacks: dict[int, list[int]] = {}
    for i, matrix in enumerate(wide):
        stacks.setdefault(len(matrix), []).append(i)
    for rows, members in stacks.items():
        columns = [wide[i].shape[1] for i in members]
        filled = wide[members[0]].new_zeros(len(members), rows, max(columns))
        for i, own, place in zip(members, columns, filled, strict=True):
            place[:, :own] = wide[i]
        for i, own, made in zip(members, columns, orthogonal(filled), strict=True):
            wide[i] = made[:, :own]
    return [one if one.shape == matrix.shape else one.T for one, matrix in zip(wide, matrices, strict=True)]


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
        are not all 0, take orthogonal steps, with a momentum of their own and no decay.
    together : bool
        Whether these are made by `orthogonal_together`, for a GPU; equal but for rounding.
    """

    def __init__(self, groups: list[dict], together: bool = False) -> None:
        self.together = together
        plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        groups = [group | plain if group["orthogonal"] else group for group in groups]
        super().__init__(groups, momentum=MOMENTUM, nesterov=True, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step by the gradients, which are changed on the way."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["orthogonal"] and weights:
                self._orthogonalise(weights)
        super().step()

    def _orthogonalise(self, weights: list[nn.Parameter]) -> None:
        """Scale weights, and put their next steps in the place of their gradients."""
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        # One call for all of them: on a GPU fewer operations.
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        nesterov = torch._foreach_add(gradients, torch._foreach_mul(momenta, MOMENTUM))
        scales = torch._foreach_reciprocal(torch._foreach_norm(weights))
        torch._foreach_mul_(scales, [len(weight) ** 0.5 for weight in weights])
        matrices = [step.flatten(1) for step in nesterov]
        steps = orthogonal_together(matrices) if self.together else [orthogonal(one) for one in matrices]
        for weight, scale, gradient, step in zip(weights, scales, gradients, steps, strict=True):
            weight.mul_(scale)
            gradient.copy_(step.view_as(weight))
