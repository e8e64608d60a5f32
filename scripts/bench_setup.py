"""What the sections of the training benchmark share: the images, the two networks, and the clock."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn

from braintumor.batches import Augmentation, Batches, measure
from braintumor.device import choose_device, choose_precision
from braintumor.images import read_image, resize_square
from braintumor.models import Architecture
from braintumor.params import Train, load_params, pick
from braintumor.phantom import CLASSES, make_phantom
from braintumor.tables import TRAINING
from braintumor.training import Recipe, Training
from scripts import PROJECT

# The seed's settings for its largest network; what the seed does not have is off.
SEED_PARAMS = {
    "model": "cnn3", "channels": None, "hidden": None, "pretrained": False, "dropout": 0.5, "batch_size": 32,
    "accumulation": 1, "optimizer": "adamw", "body_lr": 1.0, "frozen_epochs": 0, "weight_decay": 0.0,
    "label_smoothing": 0.0, "balance": 0.0, "flip": 0.5, "shift": 0.1, "rotation": 10, "scale": 0.0,
    "brightness": 0.2, "contrast": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    files: int = 192  # images that speeds are measured on
    rounds: int = 3  # turns of each side of a comparison
    turn: float = 0.1  # seconds that a turn of a short call takes, repeated
    steps: tuple[int, int] = (6, 2)  # of the default network and of cnn3 in a turn; on a GPU a hundred times
    sizes: tuple[int | None, int] = (None, 256)  # sides of their images; None for that in params.yaml
    train: dict[str, object] = field(default_factory=dict)  # changes to the params of both
    matrices: tuple[int, ...] = (512, 1024, 2048, 4096)
    gpu_matrices: tuple[int, ...] = (8192, 16384)
    batch_sizes: tuple[int, ...] = (32, 128, 512)  # of cnn3
    compiles: bool = True
    rows: int = 7023  # of the array whose memory is measured where there is no data/images.npy


# To see that everything runs.
QUICK = Effort(
    files=16,
    rounds=1,
    turn=0.0,
    steps=(1, 1),
    sizes=(32, 32),
    train={
        "batch_size": 4,
        "channels": [4, 8],
        "epochs": 1,
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
    },
    matrices=(64,),
    batch_sizes=(4, 8),
    compiles=False,
    rows=100,
)


@dataclass(frozen=True)
class Network:
    """A network with its settings, the side of its images, and how many steps a turn has."""

    train: Train
    size: int
    steps: int

    def build(self) -> nn.Module:
        """Build the network with fresh weights, always the same ones."""
        torch.manual_seed(self.train.seed)
        return Architecture.of(self.train, self.size, len(CLASSES)).build()


class Bench:
    """The images, the networks and the device.

    Parameters
    ----------
    folder : Path
        The project, or a folder laid out like it, whose data/raw is used where it exists.
    temporary : Path
        An empty folder.
    effort : Effort
    """

    def __init__(self, folder: Path, temporary: Path, effort: Effort) -> None:
        self.folder, self.temporary, self.effort = folder, temporary, effort
        self.squares: dict[int, np.ndarray] = {}  # the files as they are trained on, by size
        self.params = load_params(PROJECT / "params.yaml")
        default = self.params.train.model_copy(update=effort.train)
        seed = default.model_copy(update=SEED_PARAMS | effort.train)
        self.device = choose_device(default.device, default.threads)
        self.precision = choose_precision(default.precision, self.device)
        # A turn is an epoch, whose end takes a GPU as long as some steps of these.
        steps = [count * (100 if self.device.type == "cuda" else 1) for count in effort.steps]
        self.networks = {
            "default": Network(default, effort.sizes[0] or self.params.preprocess.size, steps[0]),
            "cnn3": Network(seed, effort.sizes[1], steps[1]),
        }

    @cached_property
    def raw(self) -> Path:
        """The folder of the dataset, or that of a phantom where it is missing."""
        raw = self.folder / "data" / "raw"
        if not (raw / TRAINING).is_dir():
            raw = self.temporary / "phantom"
            make_phantom(raw, max(8, self.effort.files // 4), seed=42)
        return raw

    @cached_property
    def files(self) -> list[Path]:
        """Some training images of every class, from all over its list."""
        classes = [sorted(folder.iterdir()) for folder in sorted((self.raw / TRAINING).iterdir())]
        each = self.effort.files // len(classes)
        return [own[i] for own in classes for i in np.linspace(0, len(own) - 1, each).astype(int)]

    def training(
        self,
        network: Network,
        precision: torch.dtype | None = None,
        compiled: bool = False,
        kind: type[Batches] = Batches,
    ) -> Training:
        """Make a training on `files` whose epoch is one turn: its steps, and one image of validation."""
        if network.size not in self.squares:
            greys = [read_image(file, network.size).grey for file in self.files]
            self.squares[network.size] = np.stack([resize_square(grey, network.size) for grey in greys])
        images = self.squares[network.size]
        labels = np.unique([file.parent.name for file in self.files], return_inverse=True)[1]
        rows = np.arange(network.steps * network.train.batch_size) % len(images)
        scale = measure(images, rows)
        train, validation = (
            kind(images, some, labels[some], network.train.batch_size, *scale, self.device)
            for some in (rows, rows[:1])
        )
        still = {"lr": 1e-3, "frozen_epochs": 0}
        return make_training(network, train, validation, precision or self.precision, compiled, **still)


def make_training(
    network: Network,
    train: Batches,
    validation: Batches,
    precision: torch.dtype,
    compiled: bool = False,
    **changes: object,
) -> Training:
    """Set a training up as the stage does, but with some changes to the recipe."""
    recipe, augmentation = replace(pick(Recipe, network.train), **changes), pick(Augmentation, network.train)
    return Training(network.build(), train, validation, augmentation, recipe, precision, compiled=compiled)


@contextmanager
def elsewhere(make: Callable[..., object], *args: object) -> Iterator[Callable[[str], object]]:
    """Make something in a process of its own, whose C library hands freed memory back as any program's does.

    Parameters
    ----------
    make : callable
        Makes it there, from `args`; they travel, what it makes does not.
    *args : object

    Yields
    ------
    callable
        Calls one of its methods there, by name, and returns what that returns.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_settle, make, args).result()
        yield lambda method: pool.submit(_call, method).result()


def _settle(make: Callable[..., object], args: tuple) -> None:
    global _settled
    _settled = make(*args)


def _call(method: str) -> object:
    return getattr(_settled, method)()


def feed(batches: Iterable) -> None:
    """Make all batches and drop them."""
    deque(batches, maxlen=0)


def clock(call: Callable[[], object], device: torch.device, count: int = 1) -> float:
    """Return the seconds that a call takes, the mean of some."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def interleaved(
    sides: dict[str, Callable[[], object]], device: torch.device, rounds: int, at_least: float = 0.0
) -> dict[str, list[float]]:
    """Time some calls in turn, so that what else changes on the machine meets all of them.

    `torch.utils.benchmark.Timer` cannot: it warms up before each turn, for longer than a turn takes.

    Parameters
    ----------
    sides : dict of name -> call
    device : torch.device
    rounds : int
        Turns of each side, after one that warms it up.
    at_least : float
        Seconds that a turn takes; a call that is shorter is repeated.

    Returns
    -------
    dict of name -> list of the seconds of one call, by round
    """
    counts = {}
    for name, call in sides.items():
        call()
        counts[name] = max(1, math.ceil(at_least / clock(call, device))) if at_least else 1
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            taken[name].append(clock(call, device, counts[name]))
    return taken
