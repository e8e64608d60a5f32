"""The networks: the seed's four CNNs, any stack of the same blocks, a compact residual network, torchvision's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from braintumor.errors import UserError
from braintumor.params import Train

# Channels of the blocks and units of the hidden layer.
CNNS = {
    "cnn0": ((4, 4, 4, 4), 32),
    "cnn1": ((4, 8, 16, 16), 64),
    "cnn2": ((4, 8, 16, 32, 32), 64),
    "cnn3": ((32, 64, 128, 256, 256), 512),
}
# How many times the stem halves the image, and whether the last stage does once more: a stride of 32, 16 and 16
# with their own channels.
RESNETS = {"resnet": (2, True), "resnet_stride16": (2, False), "resnet_nopool": (1, True)}
RESNET_CHANNELS = (16, 16, 32, 32, 64, 64, 128, 128)


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network without its weights.

    Attributes
    ----------
    model : {"resnet", "resnet_stride16", "resnet_nopool", "cnn"} or str
        ``torchvision/`` and a name is one of torchvision's classifiers.
    channels : tuple of int
        Of each block; none for those of torchvision.
    hidden : int or None
        Units of the hidden linear layer of a ``cnn``.
    dropout : float
        Probability before each linear layer.
    size : int
        Side of the images, in pixels.
    classes : int
    """

    model: str
    channels: tuple[int, ...]
    hidden: int | None
    dropout: float
    size: int
    classes: int

    @classmethod
    def named(
        cls,
        name: str,
        channels: list[int] | None,
        hidden: int | None,
        dropout: float,
        size: int,
        classes: int,
    ) -> "Architecture":
        """Complete the architecture of a name of params.yaml, such as ``resnet`` or ``torchvision/resnet18``.

        What is given for `channels` and `hidden` replaces the name's own.

        Raises
        ------
        UserError
            If the images are too small for the number of blocks.
        """
        if name.startswith("torchvision/"):
            return cls(name, (), None, dropout, size, classes)
        own_channels, own_hidden = CNNS.get(name, (RESNET_CHANNELS, None))
        model = name if name in RESNETS else "cnn"
        channels = tuple(channels or own_channels)
        halvings = len(channels)
        if name in RESNETS:
            stem, halves_last = RESNETS[name]
            halvings = stem + sum(halvings_of(channels, halves_last))
        if size < 2**halvings:
            raise UserError(
                f"train.channels: the network halves an image of {size} pixels {halvings} times, to nothing; "
                f"use fewer blocks or preprocess.size of at least {2**halvings}"
            )
        return cls(model, channels, hidden or own_hidden, dropout, size, classes)

    @classmethod
    def of(cls, train: Train, size: int, classes: int) -> "Architecture":
        """Complete the architecture that the params of training ask for."""
        return cls.named(train.model, train.channels, train.hidden, train.dropout, size, classes)

    def build(self, pretrained: bool = False) -> nn.Module:
        """Build the network with fresh weights, drawn from torch's global generator.

        With `pretrained`, those of a torchvision network come from torchvision instead, but for the last layer's.
        """
        if self.model.startswith("torchvision/"):
            from braintumor.zoo import TorchvisionNetwork  # here, since torchvision takes a second to import

            name = self.model.removeprefix("torchvision/")
            return TorchvisionNetwork(name, self.dropout, self.size, self.classes, pretrained)
        if self.model in RESNETS:
            stem, halves_last = RESNETS[self.model]
            return ResNet(self.channels, self.dropout, self.classes, stem == 2, halves_last)
        return CNN(self.channels, self.hidden, self.dropout, self.size, self.classes)


class GreyConv2d(nn.Conv2d):
    """A convolution of several channels that all are one grey image, which is given once.

    Equal channels give what one gives with the sum of their weights, for a part of the work.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map images of shape (n, 1, h, w) to features."""
        weight = self.weight.sum(1, keepdim=True)
        return nn.functional.conv2d(images, weight, self.bias, self.stride, self.padding)


class CNN(nn.Module):
    """The seed's stack: blocks of Conv 3x3, ReLU, MaxPool 2, then two linear layers with dropout.

    The pooling comes before the ReLU, which gives the same and leaves the ReLU a quarter of the work.

    Parameters
    ----------
    channels, hidden, dropout, size, classes
        See `Architecture`.
    """

    def __init__(self, channels: tuple[int, ...], hidden: int, dropout: float, size: int, classes: int) -> None:
        super().__init__()
        blocks = []
        for before, after in zip((3, *channels), channels, strict=False):
            kind = nn.Conv2d if blocks else GreyConv2d
            blocks += [kind(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        cells = (size // 2 ** len(channels)) ** 2
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels[-1] * cells, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images of shape (n, 1, size, size) to logits of shape (n, classes)."""
        return self.head(self.blocks(images))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut (He et al. 2016, arXiv:1512.03385).

    The last norm's scale starts at 0, so that the block starts as its shortcut (arXiv:1706.02677); a shortcut
    that halves the image pools before its 1x1 convolution (arXiv:1812.01187).
    """

    def __init__(self, before: int, after: int, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves else 1
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        nn.init.zeros_(self.residual[-1].weight)
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        if before != after:
            shortcut += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (n, before, h, w) to (n, after, h / stride, w / stride)."""
        return torch.relu(self.residual(features) + self.shortcut(features))


def halvings_of(channels: tuple[int, ...], halves_last: bool) -> list[bool]:
    """Say which residual blocks halve the image: those with other channels than the block before.

    Without `halves_last` the last of them does not.
    """
    halvings = [before != after for before, after in zip((channels[0], *channels), channels, strict=False)]
    if not halves_last and any(halvings):
        halvings[max(i for i, halves in enumerate(halvings) if halves)] = False
    return halvings


class ResNet(nn.Module):
    """A compact residual network: a stem that halves the image, one block per entry of channels, mean pooling.

    A block that changes the number of channels halves the image. A stem that pools halves it once more, before its
    norm and its ReLU, which then have a quarter of the work.

    Parameters
    ----------
    channels, dropout, classes
        See `Architecture`.
    pools : bool
        Whether the stem does.
    halves_last : bool
        Whether the last block that changes the number of channels halves the image, too.
    """

    def __init__(
        self, channels: tuple[int, ...], dropout: float, classes: int, pools: bool, halves_last: bool
    ) -> None:
        super().__init__()
        pooling = [nn.MaxPool2d(2)] if pools else []
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 5, stride=2, padding=2, bias=False),
            *pooling,
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
        befores = (channels[0], *channels)
        shapes = zip(befores, channels, halvings_of(channels, halves_last), strict=False)
        self.blocks = nn.Sequential(*[ResidualBlock(before, after, halves) for before, after, halves in shapes])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images of shape (n, 1, size, size) to logits of shape (n, classes)."""
        features = self.blocks(self.stem(images)).mean(dim=(2, 3))
        return self.head(self.dropout(features))


def count_parameters(model: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
