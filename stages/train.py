"""Train the network on the training rows and keep its best epoch by validation."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pandas as pd
import torch

from braintumor.batches import make_sets
from braintumor.checkpoint import Checkpoint, claim, fingerprint, release
from braintumor.device import choose_device, choose_precision, describe_environment, keep_freed_memory
from braintumor.distributed import check_launcher, joined, means_lost_process, place_on_machine, starts_first
from braintumor.epochs import make_training, run_epochs
from braintumor.errors import UserError
from braintumor.models import Architecture, count_parameters
from braintumor.params import Params, load_params, pick
from braintumor.tables import read_images, read_table, write_metrics, write_table
from braintumor.training import Diverged, Recipe, Stopped
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
    unfinished = weights.parent / "unfinished"
    check_launcher()
    lock = claim(unfinished) if starts_first() else None
    keep_freed_memory()
    device = choose_device(train.device, train.threads, *place_on_machine())
    table = read_table(split)
    array = read_images(images, table)
    sets = make_sets(table, array, train.batch_size, train.balance, train.distinct, device)
    architecture = Architecture.of(train, array.shape[1], len(sets.classes))
    recipe = pick(Recipe, train)
    if train.lr == "auto":
        suggested = json.loads(lr_range.read_text(encoding="utf-8")).get("suggested_lr")
        if suggested is None:
            raise UserError(f"train.lr=auto: {lr_range} suggests no rate, the loss fell at none: set a number")
        recipe = replace(recipe, lr=suggested)
    described = Description(
        architecture,
        sets.classes,
        params.preprocess.model_dump(),
        sets.train.mean,
        sets.train.deviation,
        describe_environment(device, choose_precision(train.precision, device)),
    )
    with joined(device) as ranks:  # waiting for the others, a process can only end, as it does without this
        answer(leave)
        training = make_training(train, architecture, recipe, sets, device, ranks)
        # After all of the code that trains is loaded, which is part of the key.
        key = configuration(params, recipe, [images, split], device)
        checkpoint = Checkpoint(unfinished, key)
        answer(lambda number, _: setattr(training, "stopping", number))
        try:
            run_epochs(training, checkpoint, live)
            training.asked_to_stop()  # sets `stopping`, too late for a step to see it: the next start only writes
        except Stopped:
            pass  # all processes have stopped before the same step, and leave below
        except RuntimeError as error:
            answer(leave)
            if training.stopping and means_lost_process(error):  # asked to stop; the other went first
                leave(training.stopping)
            raise
        except Diverged as error:
            if not training.epochs or not ranks.first:
                raise
            save_model(training.best_weights, described, weights, description)
            raise UserError(f"{error}; {weights} holds epoch {training.best.number}, the best so far") from None
    answer(leave)
    if training.stopping:
        leave(training.stopping)
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
    answer(signal.SIG_IGN)  # all is done: one that DVC takes for stopped would train anew
    if lock:
        release(lock)
    checkpoint.delete()


def answer(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Let a handler answer a preemption and Ctrl-C; where it leaves, DVC sees a stage that has failed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def leave(number: int, *_: object) -> None:
    """End as what a signal has ended."""
    sys.exit(128 + number)


def configuration(params: Params, recipe: Recipe, data: list[Path], device: torch.device) -> str:
    """Return a hash of all that a training depends on but the number of processes: another can go on with it."""
    # All that this process has loaded of the project: a report that is worded anew loses no training.
    modules = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "braintumor"}
    code = [Path(__file__), *(Path(file) for _, file in sorted(modules.items()))]
    train = params.train.model_dump(exclude={"launcher", "lr"})
    # What auto stands for on this machine, where another may go on.
    precision = choose_precision(params.train.precision, device)
    versions = torch.__version__, device.type, precision
    return fingerprint([*code, *data], train, recipe, params.preprocess, versions)


if __name__ == "__main__":
    run(main)
