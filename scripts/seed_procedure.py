"""The seed notebook's way of training, the benchmark's other side: files through Pillow, float32, one process."""

import copy
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from braintumor.models import CNN

EPOCHS = 10  # after which the seed reports 93% of its validation set, for its largest network


def make_loader(
    folder: Path,
    files: Collection[Path],
    size: int,
    batch_size: int,
    mean: float,
    deviation: float,
    training: bool = True,
) -> DataLoader:
    """Make the seed's loader: every image is read, resized and augmented by Pillow each time it is used.

    Parameters
    ----------
    folder : Path
        With one folder per class.
    files : collection of Path
        Those of the folder's images that are used.
    size : int
        Side, in pixels.
    batch_size : int
    mean, deviation : float
        Normalisation, on a scale of 0 to 1.
    training : bool
        False: all images in their order, without augmentation, as validation reads them.
    """
    augmentation = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomAffine(degrees=0, translate=(0.1, 0.1)),
        transforms.ColorJitter(brightness=0.2),
        transforms.RandomRotation(10),
    ]
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            *(augmentation if training else []),
            transforms.ToTensor(),
            transforms.Normalize([mean] * 3, [deviation] * 3),
        ]
    )
    used = set(files)
    images = ImageFolder(str(folder), transform, is_valid_file=lambda path: Path(path) in used, allow_empty=True)
    return DataLoader(images, batch_size, shuffle=training, drop_last=training, num_workers=0)


def seed_network(ours: CNN) -> nn.Module:
    """Return one of the seed's networks as the seed has it: three channels, and the ReLU before the pooling."""
    layers: list[nn.Module] = []
    for layer in ours.blocks:
        if isinstance(layer, nn.Conv2d):
            own = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)
            own.load_state_dict(layer.state_dict())
            layers += [own, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, copy.deepcopy(ours.head))


class SeedTraining:
    """The seed's training loop.

    Parameters
    ----------
    model : nn.Module
        With fresh weights.
    loader : DataLoader
    device : torch.device
    validation : DataLoader, optional
        What `score` scores.
    """

    def __init__(
        self, model: nn.Module, loader: DataLoader, device: torch.device, validation: DataLoader | None = None
    ) -> None:
        self.model, self.loader, self.device, self.validation = model.to(device), loader, device, validation
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=7e-4)
        self.criterion = nn.CrossEntropyLoss()

    def run_epoch(self) -> tuple[float, float]:
        """Train on every batch once and return the mean loss and the accuracy on the way."""
        # Exact repetition, which ours pays for, is not part of the seed.
        exact = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        self.model.train()
        loss_sum, right, seen = 0.0, 0, 0
        for batch, target in self.loader:
            images, labels = batch.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = self.criterion(logits, labels)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item() * len(labels)
            right += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        torch.use_deterministic_algorithms(exact, warn_only=True)
        return loss_sum / seen, right / seen

    def score(self) -> float:
        """Return the accuracy on every image of the validation loader."""
        self.model.eval()
        right = seen = 0
        with torch.no_grad():
            for images, labels in self.validation:
                right += (self.model(images.to(self.device)).argmax(1) == labels.to(self.device)).sum().item()
                seen += len(labels)
        return right / seen
