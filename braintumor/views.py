"""What a network says of changed images: flipped and scaled ones, and ones without their centre."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from braintumor.batches import warp


class AveragedViews(nn.Module):
    """A network that looks at each image several times and averages the probabilities.

    Parameters
    ----------
    model : Module
        Maps images of shape (n, 1, size, size) to logits.
    flip : bool
        Look at the left-right mirror image as well.
    scales : sequence of float
        Look at the image at these sizes; 1 is its own, smaller ones have black around them.
    black : float
        The grey value 0 after normalisation.
    """

    def __init__(self, model: nn.Module, flip: bool, scales: Sequence[float], black: float) -> None:
        super().__init__()
        self.model, self.flip, self.scales, self.black = model, flip, scales, black

    def forward(self, images: Tensor) -> Tensor:
        """Map images to the logarithm of the mean probability over their views."""
        views = [self._scaled(images, scale) for scale in self.scales]
        if self.flip:
            views += [view.flip(3) for view in views]
        return torch.stack([self.model(view).softmax(1) for view in views]).mean(0).log()

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return images
        zoom = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]], device=images.device)
        # What lies outside is filled with 0.
        return warp(images - self.black, zoom.expand(len(images), 2, 3)) + self.black


def choose_views(flips: bool, scales: Sequence[float]) -> dict[str, tuple[bool, Sequence[float]]]:
    """Name the ways of looking several times that are asked for: `flip` and `scales` of `AveragedViews` each."""
    views: dict[str, tuple[bool, Sequence[float]]] = {}
    if flips:
        views["flips"] = (True, [1])
    if scales:
        views["scales"] = (False, scales)
    if flips and scales:
        views["flips_scales"] = (True, scales)
    return views


class BorderOnly(nn.Module):
    """A network that is shown the border of each image only; the rest has the grey of the mean training pixel.

    Parameters
    ----------
    model : Module
        Takes images normalised to a mean of 0.
    border : float
        Width of the border on each side, as a share of the image's, 0 to 0.5.
    """

    def __init__(self, model: nn.Module, border: float) -> None:
        super().__init__()
        self.model, self.border = model, border

    def forward(self, images: Tensor) -> Tensor:
        """Map images of shape (n, 1, size, size) to the logits of their borders."""
        width = border_width(images.shape[-1], self.border)
        masked = images.clone()
        masked[:, :, width:-width, width:-width] = 0
        return self.model(masked)


def border_width(size: int, border: float) -> int:
    """Return the width of a border that is a share of the image's side, in pixels, 1 at least."""
    return max(1, round(size * border))
