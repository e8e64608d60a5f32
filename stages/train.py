"""Train the network on the training rows and keep its best epoch by validation."""

import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from dvclive import Live

import braintumor
from braintumor.batches import Augmentation, Batches, measure
from braintumor.checkpoint import Checkpoint, fingerprint
from braintumor.models import Architecture, count_parameters
from braintumor.params import load_params
from braintumor.tables import TRAIN, VALIDATION, read_images, read_table, write_metrics, write_table
from braintumor.training import Epoch, Recipe, Training, choose_device, choose_precision
from braintumor.weights import Description, save_model
from stages import run


def main(
    images: Path, split: Path, weights: Path, description: Path, metrics: Path, curves: Path, live: Path
) -> None:
    params = load_params(Path("params.yaml"))
    train = params.train
    device = choose_device(train.device, train.threads)
    precision = choose_precision(train.precision, device)
    table = read_table(split)
    array = read_images(images, table)
    classes = sorted(table["class"].unique())
    labels = table["class"].map(classes.index).to_numpy()
    trained, validated = (np.flatnonzero(table["subset"] == subset) for subset in (TRAIN, VALIDATION))
    mean, deviation = measure(array, trained)

    architecture = Architecture.named(
        train.model, train.channels, train.hidden, train.dropout, array.shape[1], len(classes)
    )
    torch.manual_seed(train.seed)
    model = architecture.build()
    sets = [
        Batches(array, rows, labels[rows], train.batch_size, mean, deviation, device)
        for rows in (trained, validated)
    ]
    augmentation = Augmentation(**{field.name: getattr(train, field.name) for field in fields(Augmentation)})
    recipe = Recipe(**{field.name: getattr(train, field.name) for field in fields(Recipe)})
    print(
        f"{train.model} of {count_parameters(model):,} parameters on {device} in {precision}: "
        f"{len(trained)} images train, {len(validated)} validate"
    )
    training = Training(model, *sets, augmentation, recipe, precision)
    code = sorted(Path(braintumor.__file__).parent.glob("*.py"))
    key = fingerprint([*code, images, split], params.train, params.preprocess, str(device))
    checkpoint = Checkpoint(weights.parent / "unfinished", key)
    if state := checkpoint.load():
        training.restore(state)
        print(f"going on after epoch {len(training.epochs)} of {train.epochs}")
    # A preempted job: what is done is saved, and DVC sees a stage that has failed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.perf_counter()
    with Live(str(live), dvcyaml=None, save_dvc_exp=False) as log:
        for epoch in training.epochs:
            log_epoch(log, epoch)
        while not training.done:
            epoch = training.run_epoch()
            checkpoint.save(training.state())
            log_epoch(log, epoch)
            print(
                f"epoch {epoch.number}/{train.epochs}: loss {epoch.train.loss:.3f}, "
                f"accuracy {epoch.train.accuracy:.3f}; validation loss {epoch.validation.loss:.3f}, "
                f"accuracy {epoch.validation.accuracy:.3f}{' (best)' if epoch is training.best else ''}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    model.load_state_dict(training.best_weights)
    save_model(
        model,
        Description(architecture, tuple(classes), params.preprocess.model_dump(), mean, deviation),
        weights,
        description,
    )
    write_table(pd.DataFrame([{"epoch": epoch.number} | epoch.flat() for epoch in training.epochs]), curves)
    best = training.best
    summary = {"parameters": count_parameters(model), "epochs": len(training.epochs), "best_epoch": best.number}
    write_metrics(summary | best.flat(), metrics)
    checkpoint.delete()


def log_epoch(log: Live, epoch: Epoch) -> None:
    """Write one epoch's scores where they can be watched."""
    log.step = epoch.number
    for name, value in epoch.flat().items():
        log.log_metric(name, value)
    log.next_step()


if __name__ == "__main__":
    run(main)
