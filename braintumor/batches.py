"""From uint8 rows to normalised, augmented batches, made on the training device."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from torch import Tensor

from braintumor.tables import TRAIN, VALIDATION


def resident_limit(device: torch.device) -> int:
    """Return the bytes that a set may take on a device: half of a GPU's free memory, half a GiB on a CPU."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**29


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

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw what is random about n images.

        Drawn apart from its use, so that a process that has a part of a batch changes it as it would be changed in
        the whole batch.

        Returns
        -------
        Tensor of shape (n, 7), float32, 0 to 1
        """
        return torch.rand(n, 7, generator=generator)

    def warps(self, draw: Tensor) -> Tensor:
        """Turn what was drawn into one affine map per image, from places in the result to places in the image.

        Places run from -1 to 1 along each axis, x first, as `torch.nn.functional.affine_grid` has them.

        Returns
        -------
        Tensor of shape (n, 2, 3), float32
        """
        angle = (draw[:, 0] * 2 - 1) * self.rotation * pi / 180
        shift = (draw[:, 1:3] * 2 - 1) * self.shift * 2
        mirror = 1 - 2 * (draw[:, 3] < self.flip).float()
        zoom = (1 + self.scale) ** (draw[:, 4] * 2 - 1)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        rows = [cos * mirror, -sin * mirror, shift[:, 0], sin, cos, shift[:, 1]]
        return torch.stack(rows, dim=1).reshape(-1, 2, 3)

    def __call__(self, images: Tensor, draw: Tensor, mean: float, deviation: float) -> Tensor:
        """Change each image by what was drawn for it, and normalise it.

        Parameters
        ----------
        images : Tensor of shape (n, 1, size, size), float32, 0 to 255
        draw : Tensor of shape (n, 7)
            From `draw`, on the images' device.
        mean, deviation : float
            Normalisation, on a scale of 0 to 1.
        """
        images = warp(images, self.warps(draw))
        factors = (draw[:, 5:] * 2 - 1)[:, :, None, None, None]
        contrast, brightness = 1 + factors[:, 0] * self.contrast, 1 + factors[:, 1] * self.brightness
        centre = images.mean(dim=(1, 2, 3), keepdim=True)
        # brightness * (contrast * (image - centre) + centre), cut off at black and white and normalised, with the
        # factors of each image multiplied before its pixels are gone through.
        gain = brightness * contrast / (255 * deviation)
        offset = (brightness * (1 - contrast) * centre / 255 - mean) / deviation
        return images.mul_(gain).add_(offset).clamp_(-mean / deviation, (1 - mean) / deviation)


def warp(images: Tensor, warps: Tensor) -> Tensor:
    """Move each image by its affine map, with bilinear sampling and black around it.

    Parameters
    ----------
    images : Tensor of shape (n, 1, size, size), float32
    warps : Tensor of shape (n, 2, 3)
        See `Augmentation.warps`.
    """
    # What F.affine_grid gives, which multiplies a small matrix at each pixel and takes longer than the sampling.
    # As complex numbers, x + iy, a row and a column of places add up to the grid in one pass.
    size = images.shape[-1]
    places = (torch.arange(size, dtype=warps.dtype, device=warps.device) * 2 + 1) / size - 1
    x, y, shift = torch.view_as_complex(warps.transpose(1, 2).contiguous()).unbind(1)
    along_x, along_y = x[:, None, None] * places, y[:, None, None] * places[:, None] + shift[:, None, None]
    grid = torch.view_as_real(along_x + along_y)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def drop_pages(images: np.ndarray) -> None:
    """Let go of what was read of an array that is mapped from a file; else a process grows with the set."""
    pages = getattr(images, "_mmap", None)
    if pages is not None and hasattr(pages, "madvise"):
        pages.madvise(mmap.MADV_DONTNEED)


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
        drop_pages(images)
    values = np.arange(256) / 255
    mean = np.average(values, weights=counts)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting until it has got there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


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
    weights : ndarray of shape (n,), optional
        How often a shuffled epoch has each row, in proportion; once where it is not given.
    copies : ndarray of shape (n,), int, optional
        Rows of one number are copies of each other: a shuffled epoch has one of them, drawn anew. All of them
        where it is not given.
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
        weights: np.ndarray | None = None,
        copies: np.ndarray | None = None,
        resident_bytes: int | None = None,
    ) -> None:
        self.images, self.rows, self.batch_size = images, rows, batch_size
        self.mean, self.deviation, self.device = mean, max(deviation, 1e-6), device
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
        self.weights = None if weights is None else torch.from_numpy(np.asarray(weights, np.float64))
        self.copies = copies
        self.epoch_size = len(rows if copies is None else np.unique(copies))
        limit = resident_limit(device) if resident_bytes is None else resident_bytes
        fits = len(rows) * images[0].nbytes <= limit
        self.resident = torch.from_numpy(images[rows]).to(device) if fits else None
        drop_pages(images)

    def __len__(self) -> int:
        return len(self.rows)

    def in_order(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images as they are: (b, 1, size, size) float32, and their labels (b,).

        Process `rank` of `ranks` gets every `ranks`-th image, so that together they get each image once.
        """
        for index in torch.arange(rank, len(self.rows), ranks).split(self.batch_size):
            on_device = index.to(self.device)
            yield self._normalise(self._take(index, on_device)), self.labels[on_device]

    def shuffled(
        self, augmentation: Augmentation, seed: int, rank: int = 0, ranks: int = 1, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield full batches of augmented images in random order; what does not fill a batch is left out.

        Process `rank` of `ranks` gets its part of every batch, with the changes that one process would make.

        Parameters
        ----------
        augmentation : Augmentation
        seed : int
            Of order and augmentation: another one for each epoch.
        rank, ranks : int
        skip : int
            Batches at the start to leave out; the others stay as they are.
        """
        generator = torch.Generator().manual_seed(seed)
        order = self._order(generator)[: self.steps * self.batch_size]
        own = slice(rank * self.batch_size // ranks, (rank + 1) * self.batch_size // ranks)
        # Order and draws go to the device for many batches at once: a copy for each would make a GPU wait.
        for number, block in enumerate(order.split(64 * self.batch_size)):
            draws = _send(augmentation.draw(len(block), generator), self.device)
            on_device = _send(block, self.device)
            for start in range(0, len(block), self.batch_size):
                if 64 * number + start // self.batch_size < skip:
                    continue
                batch = slice(start, start + self.batch_size)
                index = on_device[batch][own]
                images = self._take(block[batch][own], index)
                images = augmentation(images, draws[batch][own], self.mean, self.deviation)
                yield images.to(memory_format=torch.channels_last), self.labels[index]

    @property
    def steps(self) -> int:
        """Number of batches of a shuffled epoch."""
        return max(1, self.epoch_size // self.batch_size)

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the positions of an epoch's rows, in random order, each as often as its weight says.

        With weights, each comes up the whole number next to its share (systematic resampling, Kitagawa 1996).
        """
        shuffle = torch.randperm(len(self.rows), generator=generator)
        n = self.epoch_size
        if self.copies is not None:
            # The first of each, in an order in which those of many copies do not come sooner.
            firsts = np.unique(self.copies[shuffle.numpy()], return_index=True)[1]
            shuffle = shuffle[torch.from_numpy(firsts)][torch.randperm(n, generator=generator)]
        if self.weights is None:
            return shuffle
        shares = self.weights[shuffle].cumsum(0)
        points = (torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)) * (shares[-1] / n)
        drawn = shuffle[torch.searchsorted(shares, points, right=True).clamp_(max=n - 1)]
        return drawn[torch.randperm(n, generator=generator)]

    def _take(self, index: Tensor, on_device: Tensor) -> Tensor:
        """Return the images of an index, which is given on the CPU and on the device."""
        if self.resident is not None:
            images = self.resident[on_device]
        else:
            images = _send(torch.from_numpy(self.images[self.rows[index.numpy()]]), self.device)
            drop_pages(self.images)
        return images.unsqueeze(1).float()

    def _normalise(self, images: Tensor) -> Tensor:
        normalised = (images - 255 * self.mean).div_(255 * self.deviation)
        return normalised.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Sets:
    """What trains and what validates, and the classes that their labels are numbers of."""

    classes: tuple[str, ...]
    train: Batches
    validation: Batches


def make_sets(
    table: pd.DataFrame, images: np.ndarray, batch_size: int, balance: float, distinct: bool, device: torch.device
) -> Sets:
    """Make the batches of a split, both normalised by the training images.

    Parameters
    ----------
    table : DataFrame with columns class, group, copy_group and subset
    images : ndarray of shape (len(table), size, size), uint8
    batch_size : int
    balance : float
        How far groups, such as patients, train with equal weight: a group of n images trains with the weight
        n ** (1 - balance), so that 0 counts images and 1 counts groups.
    distinct : bool
        Whether an epoch, and what `balance` counts, has one of each group of copies, in place of all.
    device : torch.device
    """
    classes = sorted(table["class"].unique())
    labels = table["class"].map(classes.index).to_numpy()
    trained, validated = (np.flatnonzero(table["subset"] == subset) for subset in (TRAIN, VALIDATION))
    scale = measure(images, trained)
    rows = table.iloc[trained]
    counted = rows.drop_duplicates(["group", "copy_group"]) if distinct else rows
    weights = rows["group"].map(counted["group"].value_counts()).to_numpy() ** -float(balance) if balance else None
    copies = rows["copy_group"].to_numpy() if distinct else None
    train = Batches(images, trained, labels[trained], batch_size, *scale, device, weights, copies)
    return Sets(tuple(classes), train, Batches(images, validated, labels[validated], batch_size, *scale, device))
