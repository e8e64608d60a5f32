"""The training loop, and what it runs on."""

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from braintumor.batches import Augmentation, Batches
from braintumor.errors import UserError


def choose_device(name: str, threads: int) -> torch.device:
    """Set torch up for exact repetition and return the device to compute on.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda"}
        ``auto`` is the GPU when there is one.
    threads : int
        Of the CPU; one and two threads round differently.

    Raises
    ------
    UserError
        If a GPU is asked for and there is none.
    """
    torch.set_num_threads(threads)
    # cuBLAS repeats exactly only with a workspace of its own. What has no exact variant on a GPU warns of it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU; set it to auto or cpu, or mend the driver")
    use_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions and matrix products compute in.

    Parameters
    ----------
    name : {"auto", "float32", "bfloat16"}
        ``auto`` is bfloat16 where the hardware has instructions for it.
    device : torch.device
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


@dataclass(frozen=True)
class Recipe:
    """How to train; the attributes are the params of the same names in params.yaml."""

    epochs: int
    optimizer: str
    lr: float
    schedule: str
    warmup: float
    weight_decay: float
    label_smoothing: float
    patience: int | None
    averaging: float
    seed: int


@dataclass(frozen=True)
class EpochScores:
    """Loss, accuracy and macro averages over the classes."""

    loss: float
    accuracy: float
    precision: float
    recall: float


def epoch_scores(labels: np.ndarray, predictions: np.ndarray, loss: float) -> EpochScores:
    """Score the predictions of one epoch.

    Parameters
    ----------
    labels, predictions : ndarray of shape (n,), int
    loss : float
        Mean cross-entropy.
    """
    precision, recall, _, _ = precision_recall_fscore_support(
        labels, predictions, average="macro", zero_division=0
    )
    return EpochScores(loss, float(accuracy_score(labels, predictions)), float(precision), float(recall))


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int
    lr: float
    train: EpochScores
    validation: EpochScores

    def flat(self) -> dict[str, float]:
        """Return lr, train_loss, train_accuracy and so on, each with five significant digits or decimals."""
        scores = {
            f"{subset}_{name}": round(value, 5)
            for subset, scores in (("train", self.train), ("validation", self.validation))
            for name, value in asdict(scores).items()
        }
        return {"lr": float(f"{self.lr:.5g}")} | scores


def make_optimizer(model: nn.Module, name: str, weight_decay: float) -> torch.optim.Optimizer:
    """Make an optimizer that decays the weights of convolutions and linear layers, but no norm or bias.

    Parameters
    ----------
    model : nn.Module
    name : {"sgd", "adamw"}
        SGD with Nesterov momentum 0.9, or AdamW, which without decay is Adam.
    weight_decay : float
    """
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=0.0)


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """Return the learning rate of a step.

    It rises from 0 to `peak` over the first `warmup` share of all steps, then stays (``constant``) or falls to
    0 along half a cosine (``cosine``).
    """
    rising = warmup * steps
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_epoch(
    model: nn.Module,
    averaged: AveragedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    label_smoothing: float,
    precision: torch.dtype,
) -> EpochScores:
    """Train on each batch once, at its learning rate; return the scores that the network had on the way."""
    model.train()
    losses, predictions, labels = [], [], []
    for (images, target), rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        # Kept on the device: reading a value here would make a GPU wait for every step. The loss that is told has
        # no label smoothing, as that of validation has none.
        losses.append(F.cross_entropy(logits.detach().float(), target))
        predictions.append(logits.detach().argmax(1))
        labels.append(target)
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise UserError("the training has diverged: its loss is no longer a number; lower train.lr")
    return epoch_scores(torch.cat(labels).cpu().numpy(), torch.cat(predictions).cpu().numpy(), loss)


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches, precision: torch.dtype = torch.float32) -> Tensor:
    """Return the logits of all images in their order: shape (n, classes), float32, on the CPU."""
    model.eval()
    logits = []
    for images, _ in batches.in_order():
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            logits.append(model(images).float())
    return torch.cat(logits).cpu()


class Training:
    """A training that can be put away after any epoch and taken up again as if nothing had happened.

    Order, augmentation and dropout of an epoch come from one seed, so that no generator's state is part of it.

    Parameters
    ----------
    model : nn.Module
        With fresh weights.
    train, validation : Batches
    augmentation : Augmentation
    recipe : Recipe
    precision : torch.dtype

    Attributes
    ----------
    epochs : list of Epoch
        What has been done so far.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        validation: Batches,
        augmentation: Augmentation,
        recipe: Recipe,
        precision: torch.dtype,
    ) -> None:
        self.model = model.to(train.device, memory_format=torch.channels_last)
        self.train, self.validation, self.augmentation = train, validation, augmentation
        self.recipe, self.precision = recipe, precision
        self.optimizer = make_optimizer(self.model, recipe.optimizer, recipe.weight_decay)
        self.averaged = AveragedModel(self.model, avg_fn=decaying_average(recipe.averaging), use_buffers=True)
        self.epochs: list[Epoch] = []
        self.best_weights: dict[str, Tensor] = {}

    @property
    def best(self) -> Epoch:
        """The epoch with the highest validation accuracy and, among equals, the lowest validation loss."""
        return max(self.epochs, key=lambda epoch: (epoch.validation.accuracy, -epoch.validation.loss))

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or as many without a better one as patience allows."""
        number, patience = len(self.epochs), self.recipe.patience
        waited = number - self.best.number if self.epochs else 0
        return number == self.recipe.epochs or (patience is not None and waited >= patience)

    def run_epoch(self) -> Epoch:
        """Train on every batch once and validate the averaged weights."""
        number, steps = len(self.epochs) + 1, self.train.steps
        recipe = self.recipe
        rates = [
            learning_rate(step, recipe.epochs * steps, recipe.lr, recipe.schedule, recipe.warmup)
            for step in range((number - 1) * steps, number * steps)
        ]
        seed = recipe.seed * 100_003 + number
        torch.manual_seed(seed)
        batches = self.train.shuffled(self.augmentation, seed)
        bar = tqdm(batches, f"epoch {number}/{recipe.epochs}", steps, leave=False, disable=None)
        trained = train_epoch(
            self.model, self.averaged, bar, self.optimizer, rates, recipe.label_smoothing, self.precision
        )
        logits, labels = predict(self.averaged, self.validation, self.precision), self.validation.labels.cpu()
        loss = F.cross_entropy(logits, labels).item()
        validated = epoch_scores(labels.numpy(), logits.argmax(1).numpy(), loss)
        self.epochs.append(Epoch(number, rates[-1], trained, validated))
        if self.best.number == number:
            self.best_weights = copy.deepcopy(self.averaged.module.state_dict())
        return self.epochs[-1]

    def state(self) -> dict:
        """Return all that has changed since the start, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def restore(self, state: dict) -> None:
        """Go back to where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_weights = state["best_weights"]
        self.epochs = [
            Epoch(epoch["number"], epoch["lr"], EpochScores(**epoch["train"]), EpochScores(**epoch["validation"]))
            for epoch in state["epochs"]
        ]


def decaying_average(decay: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return how an average takes in a new value: exponentially with `decay`, faster at the start.

    A decay of 0 makes the average the newest value.
    """

    def average(averaged: Tensor, value: Tensor, count: Tensor) -> Tensor:
        weight = min(decay, float(count) / (float(count) + 10))
        return averaged * weight + value * (1 - weight)

    return average
