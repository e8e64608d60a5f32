"""Raise the learning rate step by step from far too small to far too large, and suggest one."""

from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import torch

from braintumor.batches import Augmentation, make_sets
from braintumor.device import choose_device, choose_precision, keep_freed_memory
from braintumor.lr_range import parts_of, range_curve, range_rates, suggest_rate
from braintumor.models import Architecture
from braintumor.params import load_params, pick
from braintumor.tables import read_images, read_table, write_metrics, write_table
from braintumor.training import Recipe, check_parts, make_optimizer, set_rate, train_step
from stages import run


def main(images: Path, split: Path, curve: Path, metrics: Path) -> None:
    params = load_params(Path("params.yaml"))
    train = params.train
    test = params.lr_range
    keep_freed_memory()
    device = choose_device(train.device, train.threads)
    precision = choose_precision(train.precision, device)
    table = read_table(split)
    array = read_images(images, table)
    sets = make_sets(table, array, train.batch_size, train.balance, train.distinct, device)
    torch.manual_seed(train.seed)
    model = Architecture.of(train, array.shape[1], len(sets.classes)).build(train.pretrained)
    model.to(device, memory_format=torch.channels_last)
    recipe = pick(Recipe, train)
    recipe = replace(recipe, accumulation=parts_of(train.batch_size, recipe.accumulation, train.launcher))
    check_parts(sets.train, recipe.accumulation)
    optimizer = make_optimizer(model, train.optimizer, train.weight_decay, train.body_lr)
    rates = range_rates(test.start, test.end, test.steps)
    augmentation = pick(Augmentation, train)
    epochs = (sets.train.shuffled(augmentation, train.seed + epoch) for epoch in count())
    batches = islice(chain.from_iterable(epochs), test.steps)
    model.train()
    losses = []
    for (batch, target), rate in zip(batches, rates, strict=True):
        set_rate(optimizer, rate)
        losses.append(train_step(model, batch, target, optimizer, recipe, precision)[0])
    rising = range_curve(rates, torch.stack(losses).cpu().numpy(), test.smoothing)
    write_table(rising, curve)
    suggestion = suggest_rate(rising)
    # No suggestion stops only a training that asks for one.
    write_metrics({} if suggestion is None else {"suggested_lr": float(f"{suggestion:.3g}")}, metrics)
    if suggestion is None:
        print("the loss falls at no learning rate of the test: lower lr_range.start or raise lr_range.end")
    else:
        print(f"the loss falls fastest at a learning rate of {suggestion:.3g} (train.lr: {train.lr})")


if __name__ == "__main__":
    run(main)
