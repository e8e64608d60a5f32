"""How long an experiment takes, from a few steps of its training."""

import math
import time
from functools import cache

import torch
from torch import Tensor

from braintumor.device import choose_device, choose_precision
from braintumor.graphs import GraphedStep
from braintumor.models import Architecture
from braintumor.params import Params
from braintumor.training import Recipe, make_optimizer, train_step

CLASSES = 4
# Shares of all images that train and validate, of the protocols' middle; a forward pass is a third of a step.
TRAINED, VALIDATED, FORWARD = 0.72, 0.08, 0.35
STARTED = 20.0  # seconds to copy the project, check what is there and import torch in each stage


def seconds_of(params: Params, images: int | None) -> float:
    """Estimate the seconds of one experiment in which all before the split is there.

    Parameters
    ----------
    params : Params
    images : int or None
        In the data, all of which count in every epoch, with `train.distinct` as well; None where they are not
        there yet, so that it is guessed.

    Returns
    -------
    float
        nan where the images cannot be guessed.
    """
    train, data = params.train, params.data
    if images is None:
        images = {"kaggle": data.images, "phantom": 6 * data.phantom_patients}.get(data.source)
    if images is None:
        return math.nan
    epoch = TRAINED + FORWARD * VALIDATED
    shares = train.epochs * epoch + FORWARD * (1 - TRAINED - VALIDATED)
    steps = images * shares / train.batch_size + params.lr_range.steps
    channels = None if train.channels is None else tuple(train.channels)
    measured = train.model, channels, train.hidden, params.preprocess.size, train.batch_size, train.optimizer
    return STARTED + steps * _step_seconds(
        *measured, train.device, train.precision, train.threads, train.accumulation
    )


@cache
def _step_seconds(
    model: str,
    channels: tuple[int, ...] | None,
    hidden: int | None,
    size: int,
    batch_size: int,
    optimizer_name: str,
    device_name: str,
    precision_name: str,
    threads: int,
    accumulation: int,
) -> float:
    """Time training steps on noise, after one that warms up."""
    device = choose_device(device_name, threads)
    precision = choose_precision(precision_name, device)
    architecture = Architecture.named(model, list(channels) if channels else None, hidden, 0.2, size, CLASSES)
    network = architecture.build().to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, optimizer_name, 0.0, 1.0)
    batch = torch.rand(batch_size, 1, size, size, device=device), torch.zeros(batch_size, dtype=int, device=device)
    recipe = Recipe(1, accumulation, optimizer_name, 0.0, 1.0, 0, "constant", 0.0, 0.0, 0.0, None, 0.0, 0)
    network.train()

    def step(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return train_step(network, images, target, optimizer, recipe, precision)

    if device.type == "cuda" and accumulation == 1:
        step = GraphedStep(step, *batch, lambda: [])
    step(*batch)
    # A CPU's own time, the least of a few steps: what else the machine has to do now is not counted.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(5):
        start = clock()
        float(step(*batch)[0])  # waits for a GPU
        seconds.append(clock() - start)
    return min(seconds) / (threads if device.type == "cpu" else 1)
