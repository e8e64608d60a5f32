"""A training by its params: set up, and run with every epoch saved, logged and printed."""

import time
from pathlib import Path

import torch
from dvclive import Live

from braintumor.batches import Augmentation, Sets
from braintumor.checkpoint import Checkpoint
from braintumor.device import choose_precision, synchronise_norms
from braintumor.distributed import ALONE, Ranks
from braintumor.models import Architecture, count_parameters
from braintumor.params import Train, pick
from braintumor.training import Epoch, Recipe, Stopped, Training


def make_training(
    train: Train,
    architecture: Architecture,
    recipe: Recipe,
    sets: Sets,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Training:
    """Put a network with its first weights and all that trains it together, and say what it is.

    Parameters
    ----------
    train : Train
        What recipe and architecture do not say: augmentation, seed, precision.
    architecture : Architecture
    recipe : Recipe
    sets : Sets
    device : torch.device
        Where `sets` are.
    ranks : Ranks, optional
        The processes that train together; the first of them prints.
    """
    torch.manual_seed(train.seed)
    model = architecture.build(train.pretrained)
    if train.sync_batch_norm:
        model = synchronise_norms(model, device)
    precision = choose_precision(train.precision, device)
    if ranks.first:
        drawn = f" ({sets.train.epoch_size} in an epoch, without copies)" if train.distinct else ""
        print(
            f"{train.model} of {count_parameters(model):,} parameters on {device} in {precision}"
            f"{f', one of {ranks.count} processes' if ranks.count > 1 else ''}, learning rate {recipe.lr:g}: "
            f"{len(sets.train)} images train{drawn}, {len(sets.validation)} validate",
            flush=True,
        )
    augmentation = pick(Augmentation, train)
    return Training(model, sets.train, sets.validation, augmentation, recipe, precision, ranks, train.compile)


def run_epochs(training: Training, checkpoint: Checkpoint, live: Path) -> None:
    """Run the epochs that are missing; after each one the first process saves, logs and prints.

    Parameters
    ----------
    training : Training
        Goes on from what `checkpoint` holds.
    checkpoint : Checkpoint
    live : Path
        Folder that DVCLive writes the scores to as they come.

    Raises
    ------
    Diverged
        If a loss is infinite or no number.
    Stopped
        If `training` was asked to stop; what it has done so far is saved.
    """
    ranks, epochs = training.ranks, training.recipe.epochs
    if state := ranks.share(checkpoint.load() if ranks.first else None):
        training.restore(state)
    if not ranks.first:
        while not training.done:
            try:
                training.run_epoch()
            except Stopped:
                training.state()  # this process's part of it
                ranks.meet()
                raise
        return
    if state:
        begun = f" and {training.begun} of {training.train.steps} batches of the next" if training.begun else ""
        print(f"going on after epoch {len(training.epochs)} of {epochs}{begun}", flush=True)
    start = time.perf_counter()
    with Live(str(live), dvcyaml=None, save_dvc_exp=False) as log:
        for epoch in training.epochs:
            log_epoch(log, epoch)
        while not training.done:
            try:
                epoch = training.run_epoch()
            except Stopped:
                checkpoint.save(training.state())
                print(f"stopped: {checkpoint.file} holds all that was done; the next start goes on", flush=True)
                ranks.meet()  # torchrun ends all once one of them has left
                raise
            checkpoint.save(training.state())
            log_epoch(log, epoch)
            print(
                f"epoch {epoch.number}/{epochs}: loss {epoch.train.loss:.3f}, "
                f"accuracy {epoch.train.accuracy:.3f}; validation loss {epoch.validation.loss:.3f}, "
                f"accuracy {epoch.validation.accuracy:.3f}{' (best)' if epoch is training.best else ''}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


def log_epoch(log: Live, epoch: Epoch) -> None:
    """Write one epoch's scores where they can be watched."""
    log.step = epoch.number
    for name, value in epoch.flat().items():
        log.log_metric(name, value)
    log.next_step()
