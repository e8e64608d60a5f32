"""Train the network on the training rows and keep its best epoch by validation."""

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from dvclive import Live

import braintumor
from braintumor.batches import Augmentation, Sets, make_sets
from braintumor.checkpoint import Checkpoint, fingerprint
from braintumor.distributed import Ranks, joined, place_on_machine
from braintumor.errors import UserError
from braintumor.models import Architecture, count_parameters
from braintumor.params import Params, load_params, pick
from braintumor.tables import read_images, read_table, write_metrics, write_table
from braintumor.training import (
    Diverged,
    Epoch,
    Recipe,
    Training,
    choose_compilation,
    choose_device,
    choose_precision,
    synchronise_norms,
)
from braintumor.weights import Description, save_model
from stages import run


def main(
    images: Path,
    split: Path,
    lr_range: Path,
    weights: Path,
    description: Path,
    metrics: Path,
    curves: Path,
    live: Path,
) -> None:
    params = load_params(Path("params.yaml"))
    train = params.train
    device = choose_device(train.device, train.threads, *place_on_machine())
    table = read_table(split)
    array = read_images(images, table)
    sets = make_sets(table, array, train.batch_size, train.balance, device)
    architecture = Architecture.named(
        train.model, train.channels, train.hidden, train.dropout, array.shape[1], len(sets.classes)
    )
    recipe = pick(Recipe, train)
    if train.lr == "auto":
        suggested = json.loads(lr_range.read_text(encoding="utf-8")).get("suggested_lr")
        if suggested is None:
            raise UserError(f"train.lr=auto: {lr_range} suggests no rate, the loss fell at none: set a number")
        recipe = replace(recipe, lr=suggested)
    checkpoint = Checkpoint(weights.parent / "unfinished", configuration(params, recipe, [images, split], device))
    described = Description(
        architecture, sets.classes, params.preprocess.model_dump(), sets.train.mean, sets.train.deviation
    )
    # A preempted job: every finished epoch has been saved, the one that runs is done again later, and DVC sees a
    # stage that has failed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with joined(device) as ranks:
        training = make_training(params, architecture, recipe, sets, device, ranks)
        try:
            run_epochs(training, checkpoint, live)
        except Diverged as error:
            if not training.epochs or not ranks.first:
                raise
            save_model(training.best_weights, described, weights, description)
            raise Diverged(f"{error}; {weights} holds epoch {training.best.number}, the best so far") from None
    if not ranks.first:
        return
    save_model(training.best_weights, described, weights, description)
    write_table(pd.DataFrame([{"epoch": epoch.number} | epoch.flat() for epoch in training.epochs]), curves)
    best = training.best
    summary = {
        "parameters": count_parameters(training.averaged),
        "epochs": len(training.epochs),
        "best_epoch": best.number,
    }
    write_metrics(summary | best.flat(), metrics)
    checkpoint.delete()


def configuration(params: Params, recipe: Recipe, data: list[Path], device: torch.device) -> str:
    """Return a hash of all that a training depends on but the number of processes: another can go on with it."""
    code = [Path(__file__), *sorted(Path(braintumor.__file__).parent.glob("*.py"))]
    train = params.train.model_dump(exclude={"launcher", "lr"})
    # What auto stands for on this machine, where another may go on.
    precision = choose_precision(params.train.precision, device)
    compiled = choose_compilation(params.train.compile, device)
    versions = torch.__version__, device.type, precision, compiled
    return fingerprint([*code, *data], train, recipe, params.preprocess, versions)


def make_training(
    params: Params, architecture: Architecture, recipe: Recipe, sets: Sets, device: torch.device, ranks: Ranks
) -> Training:
    """Put a fresh network and all that trains it together, and say what it is."""
    train = params.train
    torch.manual_seed(train.seed)
    model = architecture.build(train.pretrained)
    if train.sync_batch_norm:
        model = synchronise_norms(model, device)
    precision = choose_precision(train.precision, device)
    if ranks.first:
        print(
            f"{train.model} of {count_parameters(model):,} parameters on {device} in {precision}"
            f"{f', one of {ranks.count} processes' if ranks.count > 1 else ''}, learning rate {recipe.lr:g}: "
            f"{len(sets.train)} images train, {len(sets.validation)} validate"
        )
    compiled = choose_compilation(train.compile, device)
    augmentation = pick(Augmentation, train)
    return Training(model, sets.train, sets.validation, augmentation, recipe, precision, ranks, compiled)


def run_epochs(training: Training, checkpoint: Checkpoint, live: Path) -> None:
    """Run the epochs that are missing; after each one the first process saves, logs and prints."""
    ranks, epochs = training.ranks, training.recipe.epochs
    if state := ranks.share(checkpoint.load() if ranks.first else None):
        training.restore(state)
    if not ranks.first:
        while not training.done:
            training.run_epoch()
        return
    if state:
        print(f"going on after epoch {len(training.epochs)} of {epochs}", flush=True)
    start = time.perf_counter()
    with Live(str(live), dvcyaml=None, save_dvc_exp=False) as log:
        for epoch in training.epochs:
            log_epoch(log, epoch)
        while not training.done:
            epoch = training.run_epoch()
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


if __name__ == "__main__":
    run(main)
