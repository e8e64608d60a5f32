"""From uint8 rows to normalised, augmented batches, made on the training device."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from torch import Tensor


def resident_limit(device: torch.device) -> int:
    """Return the bytes that a set may take on a device: half of a GPU's free memory, a GiB of the main memory."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image.

    Attributes
    ----------
    flip : float
        Probability of a left-right flip, 0 to 1.
    shift : float
        Largest shift along each axis, as a share of the side.
    rotation : float
        Largest rotation, in degrees.
    scale : float
        Largest zoom, in and out, as a share: 0.25 is from 1 / 1.25 to 1.25 times the size.
    brightness : float
        The grey values are multiplied by a factor between 1 - brightness and 1 + brightness.
    contrast : float
        Their distances from the image's mean are multiplied by a factor between 1 - contrast and 1 + contrast.
    """

    flip: float
    shift: float
    rotation: float
    scale: float
    brightness: float
    contrast: float

    def warps(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw one affine map per image, from places in the result to places in the image.

        Places run from -1 to 1 along each axis, x first, as `torch.nn.functional.affine_grid` has them.

        Returns
        -------
        Tensor of shape (n, 2, 3), float32
        """
        draw = torch.rand(n, 5, generator=generator)
        angle = (draw[:, 0] * 2 - 1) * self.rotation * pi / 180
        shift = (draw[:, 1:3] * 2 - 1) * self.shift * 2
        mirror = 1 - 2 * (draw[:, 3] < self.flip).float()
        zoom = (1 + self.scale) ** (draw[:, 4] * 2 - 1)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = [cos * mirror, -sin * mirror, shift[:, 0], sin, cos, shift[:, 1]]
        return torch.stack(rows, dim=1).reshape(n, 2, 3)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change each image at random.

        Parameters
        ----------
        images : Tensor of shape (n, 1, size, size), float32, 0 to 255
            On any device.
        generator : torch.Generator
            Of the CPU, so that every device gets the same changes.
        """
        warps = self.warps(len(images), generator)
        draw = (torch.rand(2, len(images), 1, 1, 1, generator=generator) * 2 - 1).to(images.device)
        images = warp(images, warps.to(images.device))
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + draw[0] * self.contrast) + mean
        return (images * (1 + draw[1] * self.brightness)).clamp_(0, 255)


def warp(images: Tensor, warps: Tensor) -> Tensor:
    """Move each image by its affine map, with bilinear sampling and black around it.

    Parameters
    ----------
    images : Tensor of shape (n, 1, size, size), float32
    warps : Tensor of shape (n, 2, 3)
        See `Augmentation.warps`.
    """
    grid = F.affine_grid(warps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def measure(images: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the grey values of some rows, on a scale of 0 to 1.

    Read a few hundred rows at a time, in whole numbers, so that neither memory nor rounding grows with the set.

    Parameters
    ----------
    images : ndarray of shape (N, size, size), uint8
    rows : ndarray of int
    """
    counts = np.zeros(256, np.int64)
    for start in range(0, len(rows), 256):
        counts += np.bincount(images[rows[start : start + 256]].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


class Batches:
    """Batches of some rows of an image array.

    Parameters
    ----------
    images : ndarray of shape (N, size, size), uint8
        May be memory-mapped.
    rows : ndarray of shape (n,), int
        The rows that the batches are made of.
    labels : ndarray of shape (n,), int
        Class of each of `rows`.
    batch_size : int
    mean, deviation : float
        Normalisation, on a scale of 0 to 1.
    device : torch.device
        Where batches are made and used.
    resident_bytes : int, optional
        The rows are copied to the device at once if they take no more than this (`resident_limit` where it is not
        given), else batch by batch; the batches are the same.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        mean: float,
        deviation: float,
        device: torch.device,
        resident_bytes: int | None = None,
    ) -> None:
        self.images, self.rows, self.batch_size = images, rows, batch_size
        self.mean, self.deviation, self.device = mean, max(deviation, 1e-6), device
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
        limit = resident_limit(device) if resident_bytes is None else resident_bytes
        fits = len(rows) * images[0].nbytes <= limit
        self.resident = torch.from_numpy(images[rows]).to(device) if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once as they are: (b, 1, size, size) float32, and their labels (b,)."""
        for index in torch.arange(len(self.rows)).split(self.batch_size):
            yield self._normalise(self._take(index)), self.labels[index.to(self.device)]

    def shuffled(self, augmentation: Augmentation, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield full batches of augmented images in random order; what does not fill a batch is left out.

        Parameters
        ----------
        augmentation : Augmentation
        seed : int
            Of order and augmentation: another one for each epoch.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.rows), generator=generator)
        for index in order[: self.steps * self.batch_size].split(self.batch_size):
            images = augmentation(self._take(index), generator)
            yield self._normalise(images), self.labels[index.to(self.device)]

    @property
    def steps(self) -> int:
        """Number of batches of a shuffled epoch."""
        return max(1, len(self.rows) // self.batch_size)

    def _take(self, index: Tensor) -> Tensor:
        if self.resident is not None:
            images = self.resident[index.to(self.device)]
        else:
            images = torch.from_numpy(self.images[self.rows[index.numpy()]]).to(self.device)
        return images.unsqueeze(1).float()

    def _normalise(self, images: Tensor) -> Tensor:
        normalised = (images - 255 * self.mean).div_(255 * self.deviation)
        return normalised.to(memory_format=torch.channels_last)
