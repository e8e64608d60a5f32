"""The training loop."""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from braintumor.batches import Augmentation, Batches
from braintumor.distributed import ALONE, Ranks
from braintumor.errors import UserError
from braintumor.graphs import GraphedStep
from braintumor.muon import Muon

# Share of the learning rate for Muon's orthogonal steps; docs/trials.md has what others give.
MUON_SHARE = 0.15


@dataclass(frozen=True)
class Recipe:
    """How to train; the attributes are the params of the same names in params.yaml."""

    epochs: int
    accumulation: int
    optimizer: str
    lr: float
    body_lr: float
    frozen_epochs: int
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


def make_optimizer(model: nn.Module, name: str, weight_decay: float, body_lr: float) -> torch.optim.Optimizer:
    """Make an optimizer that decays the weights of convolutions and linear layers, but no norm or bias.

    Parameters
    ----------
    model : nn.Module
        Its `head` trains at the full rate.
    name : {"sgd", "adamw", "muon"}
        SGD with Nesterov momentum 0.9, AdamW, which without decay is Adam, or SGD with `Muon`'s steps for the
        body's convolutions, at MUON_SHARE of the rate and without decay.
    weight_decay : float
    body_lr : float
        Share of the rate that all but the head trains at. Each group has its share as ``share``.
    """
    head = set(model.head.parameters())
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    # Body and head in groups of their own even at one rate: the fused SGD wants all of a group to start at once.
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for weight in model.parameters():
        orthogonal = name == "muon" and weight.ndim == 4 and weight not in head
        groups.setdefault((weight in head, weight.ndim > 1, orthogonal), []).append(weight)
    # A CUDA graph reads the rate from where it lies, each time.
    settings = [
        {
            "params": own,
            "lr": torch.zeros((), device=device) if on_gpu else 0.0,
            "share": (1.0 if in_head else body_lr) * (MUON_SHARE if orthogonal else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
            "orthogonal": orthogonal,
        }
        for (in_head, decays, orthogonal), own in groups.items()
    ]
    if name == "muon":
        return Muon(settings, together=on_gpu)
    if name == "sgd":
        return torch.optim.SGD(settings, momentum=0.9, nesterov=True, fused=True)
    return torch.optim.AdamW(settings, fused=True, capturable=on_gpu)


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


def check_parts(train: Batches, accumulation: int, processes: int = 1) -> None:
    """Refuse batches that several processes, with several parts each, cannot share equally.

    Raises
    ------
    UserError
    """
    parts = processes * accumulation
    if train.batch_size % parts or (parts > 1 and train.epoch_size < train.batch_size):
        raise UserError(
            f"train.batch_size: {train.batch_size} of {train.epoch_size} images cannot be dealt out to "
            f"{processes} processes with {accumulation} equal parts each: make it a multiple of "
            f"{parts}, at most {train.epoch_size}"
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group of weights its share of a learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # on a GPU, see make_optimizer
            group["lr"].fill_(rate * group["share"])
        else:
            group["lr"] = rate * group["share"]


def train_step(
    network: nn.Module,
    images: Tensor,
    target: Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Train on one batch, at the rate that the optimizer is set to.

    Nothing is read from the device on the way, so that a GPU waits for no step.

    Returns
    -------
    loss : Tensor of shape ()
        What the network had before the step, without label smoothing, as validation has none.
    predictions : Tensor of shape (images,)

    Raises
    ------
    UserError
        If a batch norm has a single value to normalise.
    """
    plain = getattr(network, "_orig_mod", network)  # of a compiled one
    losses, predictions = [], []
    optimizer.zero_grad()
    parts = list(zip(images.chunk(recipe.accumulation), target.chunk(recipe.accumulation), strict=True))
    for number, (part, part_target) in enumerate(parts, start=1):
        # Only the last part's gradients have to meet those of other processes.
        waits = number < len(parts) and isinstance(plain, DistributedDataParallel)
        with plain.no_sync() if waits else nullcontext():
            logits = compute_logits(network, part, precision)
            loss = F.cross_entropy(logits, part_target, label_smoothing=recipe.label_smoothing)
            (loss / len(parts)).backward()
        losses.append(F.cross_entropy(logits.detach(), part_target))
        predictions.append(logits.detach().argmax(1))
    optimizer.step()
    return torch.stack(losses).mean(), torch.cat(predictions)


def compute_logits(network: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """Return the logits of images as a training step computes them: shape (images, classes), float32.

    Raises
    ------
    UserError
        If a batch norm has a single value to normalise.
    """
    # Each weight is cast once, so there is nothing to keep of it.
    enabled = precision != torch.float32
    try:
        with torch.autocast(images.device.type, precision, enabled=enabled, cache_enabled=False):
            return network(images).float()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "train.batch_size: one image at a time, of which the last blocks see a single place, cannot be "
            "normalised: raise it, lower train.accumulation, or raise preprocess.size"
        ) from None


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Batches, precision: torch.dtype = torch.float32, ranks: Ranks = ALONE
) -> Tensor:
    """Return the logits of all images in their order: shape (n, classes), float32, on the CPU.

    Each process predicts its share and gets the logits of all.
    """
    model.eval()
    logits = []
    for images, _ in batches.in_order(ranks.rank, ranks.count):
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            logits.append(model(images).float())
    own = torch.cat(logits)
    everyone = own.new_zeros(len(batches), own.shape[1])
    everyone[ranks.rank :: ranks.count] = own
    return ranks.sum(everyone).cpu()


class WeightAverage:
    """Exponential average of a network's weights and of what its batch norms have averaged.

    Parameters
    ----------
    model : nn.Module
        Where it will stay.

    Attributes
    ----------
    model : nn.Module
        The averaged network.
    weight : Tensor of shape ()
        Of the newest weights in the next update, 0 to 1; on the network's device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._olds, self._news = ([pair[i] for pair in pairs if pair[0].is_floating_point()] for i in (0, 1))
        self._counts = [[pair[i] for pair in pairs if not pair[0].is_floating_point()] for i in (0, 1)]
        self.weight = self._olds[0].new_zeros(())

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's newest weights in."""
        # One call for all of them; lerp would not end at the newest exactly.
        torch._foreach_mul_(self._olds, 1 - self.weight)
        torch._foreach_add_(self._olds, torch._foreach_mul(self._news, self.weight))
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)


def newest_weight(decay: float, step: int) -> float:
    """Return what the newest weights count in the average.

    Parameters
    ----------
    decay : float
        Of the exponential average; 0 keeps the newest.
    step : int
        Steps before this one; at the start the average is faster, as of `step` + 10 steps.
    """
    return 1 - min(decay, step / (step + 10))


class Diverged(UserError):  # noqa: N818, an event rather than a mistake of the code
    """The loss has become infinite or no number.

    Parameters
    ----------
    name : str
        Of the loss.
    loss : float
    epoch, batch, batches : int
        Where it happened, from 1.
    lr : float
    """

    def __init__(self, name: str, loss: float, epoch: int, batch: int, batches: int, lr: float) -> None:
        super().__init__(
            f"the training has diverged: the {name} is {loss} at epoch {epoch}, batch {batch} of {batches}, "
            f"learning rate {lr:.3g}; lower train.lr"
        )


class Stopped(Exception):  # noqa: N818, an event rather than an error
    """A training has been asked to stop, and has, between two steps."""


class Training:
    """A training that can be put away after any step and taken up again as if nothing had happened.

    Order, augmentation and dropout of an epoch come from one seed, so that only amid an epoch a generator's state
    is part of it: dropout's, of each process.

    Parameters
    ----------
    model : nn.Module
        With fresh or pretrained weights.
    train, validation : Batches
    augmentation : Augmentation
    recipe : Recipe
    precision : torch.dtype
    ranks : Ranks, optional
        The processes that train together, this one alone where it is not given.
    compiled : bool
        Whether torch compiles the network.

    Attributes
    ----------
    epochs : list of Epoch
        What has been done so far.
    stopping : int
        Set it, to a signal's number for example, and `run_epoch` stops before the next step; where several
        processes train, all of them before the same one, with many a few steps later.

    Raises
    ------
    UserError
        If a batch cannot be dealt out in equal parts, or there are fewer images to validate than processes.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        validation: Batches,
        augmentation: Augmentation,
        recipe: Recipe,
        precision: torch.dtype,
        ranks: Ranks = ALONE,
        compiled: bool = False,
    ) -> None:
        self.ranks, self.compiled = ranks, compiled
        check_parts(train, recipe.accumulation, ranks.count)
        # Gradients that several parts or processes add up to must not lie in a graph's memory.
        self.graphs = train.device.type == "cuda" and ranks.count * recipe.accumulation == 1
        if len(validation) < self.ranks.count:
            raise UserError(
                f"train.launcher: {self.ranks.count} processes cannot share {len(validation)} validation images: "
                "start fewer, or lower split.validation_folds"
            )
        self.model = model.to(train.device, memory_format=torch.channels_last)
        self.train, self.validation, self.augmentation = train, validation, augmentation
        self.recipe, self.precision = recipe, precision
        self.optimizer = make_optimizer(self.model, recipe.optimizer, recipe.weight_decay, recipe.body_lr)
        self.average = WeightAverage(self.model)
        self.averaged = self.average.model
        self.epochs: list[Epoch] = []
        self.best_weights: dict[str, Tensor] = {}
        self.stopping = 0
        # Losses, predictions and labels of the steps of an epoch that has begun, and the state that dropout's
        # generator goes on from, in this process.
        self._begun: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        self._generator: Tensor | None = None
        self._network: nn.Module | None = None
        self._graph: GraphedStep | None = None
        self._frozen = False

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

    @property
    def begun(self) -> int:
        """Number of steps that have been done of an epoch that has begun."""
        return len(self._begun[0])

    def run_epoch(self) -> Epoch:
        """Train on every batch once, or on what is left of a begun epoch, and validate the averaged weights.

        Raises
        ------
        Stopped
            If `stopping` was set; `state` then holds the begun epoch.
        Diverged
            If a loss is infinite or no number; the best weights so far stay in `best_weights`.
        """
        number, steps = len(self.epochs) + 1, self.train.steps
        recipe, ranks = self.recipe, self.ranks
        first = (number - 1) * steps
        rates = [
            learning_rate(step, recipe.epochs * steps, recipe.lr, recipe.schedule, recipe.warmup)
            for step in range(first, first + steps)
        ]
        self._prepare(frozen=number <= recipe.frozen_epochs)
        seed = recipe.seed * 100_003 + number
        torch.manual_seed(seed + 1_000_003 * ranks.rank)  # dropout's
        if self._generator is not None:
            self._set_generator()
        taken = self.begun
        batches = self.train.shuffled(self.augmentation, seed, ranks.rank, ranks.count, taken)
        bar = tqdm(
            batches,
            f"epoch {number}/{recipe.epochs}",
            steps,
            initial=taken,
            leave=False,
            disable=None if ranks.first else True,
        )
        losses, predictions, labels = self._train(bar, rates[taken:], first + taken)
        self._begun = ([], [], [])
        losses = (ranks.sum(losses) / ranks.count).cpu()
        bad = losses.isfinite().logical_not().nonzero()
        if len(bad):
            batch = int(bad[0])
            raise Diverged("loss", losses[batch].item(), number, batch + 1, steps, rates[batch])
        trained = epoch_scores(
            ranks.gather(labels).cpu().numpy(), ranks.gather(predictions).cpu().numpy(), losses.mean().item()
        )
        ranks.equalise(self.averaged)
        logits = predict(self.averaged, self.validation, self.precision, ranks)
        truth = self.validation.labels.cpu()
        loss = F.cross_entropy(logits, truth).item()
        if not math.isfinite(loss):
            raise Diverged("validation loss", loss, number, steps, steps, rates[-1])
        validated = epoch_scores(truth.numpy(), logits.argmax(1).numpy(), loss)
        self.epochs.append(Epoch(number, rates[-1], trained, validated))
        if self.best.number == number:
            self.best_weights = copy.deepcopy(self.averaged.state_dict())
        return self.epochs[-1]

    def asked_to_stop(self) -> bool:
        """Say whether this or another process of the training has been asked to stop; all of them have to ask."""
        return self._take_in(self._ask())

    def _ask(self) -> Callable[[], int]:
        """Ask all processes whether they have been asked to stop."""
        return self.ranks.greatest(lambda: self.stopping)

    def _take_in(self, answer: Callable[[], int]) -> bool:
        """Wait for what `_ask` asked."""
        number = answer()
        if number:  # else a signal may have come meanwhile
            self.stopping = number
        return number > 0

    def _train(
        self, batches: Iterable[tuple[Tensor, Tensor]], rates: list[float], first: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Train on each batch at its rate; return the epoch's losses, and all its predictions and labels.

        `first` is the number of steps before these.
        """
        self._network.train()
        losses, predictions, labels = self._begun
        answer = self._ask()
        for step, ((images, target), rate) in enumerate(zip(batches, rates, strict=True), start=first):
            if (step - first) % self.ranks.steps_to_answer == 0:
                if self._take_in(answer):
                    self._keep_generator()
                    raise Stopped
                answer = self._ask()  # several processes answer while they train
            set_rate(self.optimizer, rate)
            self.average.weight.fill_(newest_weight(self.recipe.averaging, step))
            if self.graphs and self._graph is None:
                self._graph = GraphedStep(self._step, images, target, self._tensors)
            loss, predicted = (self._graph or self._step)(images, target)
            losses.append(loss)
            predictions.append(predicted)
            labels.append(target)
            # At once where that costs nothing: a GPU would wait, and several processes end an epoch together.
            if loss.device.type == "cpu" and self.ranks.count == 1 and not loss.isfinite():
                break
        self._take_in(answer)  # the next step stops
        return torch.stack(losses), torch.cat(predictions), torch.cat(labels)

    def _step(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch and average the weights; see `train_step`."""
        done = train_step(self._network, images, target, self.optimizer, self.recipe, self.precision)
        self.average.update()
        return done

    def _tensors(self) -> list[Tensor]:
        """Return all that a step changes."""
        states = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.model.state_dict().values(), *self.averaged.state_dict().values(), *states]

    def _prepare(self, frozen: bool) -> None:
        """Make the network as the loop calls it, its body's weights frozen or free.

        A frozen body's batch norms go on: they take in the mean and deviation of images that are new to it.
        """
        if self._network is not None and frozen == self._frozen:
            return
        self._frozen = frozen
        head = set(self.model.head.parameters())
        for weight in set(self.model.parameters()) - head:
            weight.requires_grad_(not frozen)
            weight.grad = None
        self._graph = None
        self._network = self.model
        if self.ranks.count > 1:
            self._network = DistributedDataParallel(self.model)
        if self.compiled:
            self._network = torch.compile(self._network)
        if self.ranks.count > 1:
            self._order_gradients()

    def _order_gradients(self) -> None:
        """Let DistributedDataParallel see a step that changes nothing.

        It adds the processes' gradients up in the order of the weights at first, and after one step in that in
        which they come. So a training that is taken up again would round its next step otherwise than one that was
        not stopped.
        """
        before = [buffer.clone() for buffer in self.model.buffers()]
        images = self.train.batch_size // (self.ranks.count * self.recipe.accumulation)
        size, device = self.train.images.shape[1], self.train.device
        part = torch.zeros(images, 1, size, size, device=device).to(memory_format=torch.channels_last)
        self._network.train()
        compute_logits(self._network, part, self.precision).sum().backward()
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        self.optimizer.zero_grad()

    def _keep_generator(self) -> None:
        """Keep the state of the generator that dropout draws from."""
        device = self.train.device
        self._generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _set_generator(self) -> None:
        """Let dropout go on drawing where it had stopped."""
        state, self._generator, device = self._generator, None, self.train.device
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)

    def _begun_state(self) -> dict | None:
        """Return what is known of a begun epoch, None where none is."""
        losses, predictions, labels = self._begun
        if not losses:
            return None
        ranks = self.ranks
        return {
            "losses": ranks.sum(torch.stack(losses)) / ranks.count,
            "predictions": ranks.gather(torch.cat(predictions)),
            "labels": ranks.gather(torch.cat(labels)),
            "generators": ranks.gather(self._generator[None]),
        }

    def state(self) -> dict:
        """Return all that has changed since the start, as tensors and plain values.

        Amid an epoch the processes put it together, so that all of them have to call it.
        """
        return {
            "begun": self._begun_state(),
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
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # set at each step, and on the device
        self._graph = None
        self.best_weights = state["best_weights"]
        self.epochs = [
            Epoch(epoch["number"], epoch["lr"], EpochScores(**epoch["train"]), EpochScores(**epoch["validation"]))
            for epoch in state["epochs"]
        ]
        self._begun, self._generator = ([], [], []), None
        if begun := state["begun"]:
            device, ranks = self.train.device, self.ranks
            # Each process goes on with its share, as if it had trained on it; the epoch's scores need no order.
            shares = (begun[name].to(device)[ranks.rank :: ranks.count] for name in ("predictions", "labels"))
            self._begun = (list(begun["losses"].to(device)), *([share] for share in shares))
            # Another number of processes begins anew with dropout, but for the first, since theirs have to differ.
            if ranks.first or len(begun["generators"]) == ranks.count:
                self._generator = begun["generators"][ranks.rank].clone()  # torch crashes at a part of a tensor
