"""Measure the training against the seed's, against the clock and against what this machine can do.

Writes metrics/benchmark.json, docs/benchmark.md and docs/benchmark.png; on a GPU they are called benchmark_gpu.
Nothing else should run on the machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch._dynamo
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from braintumor.batches import Augmentation, Batches, make_sets, measure, resident_limit
from braintumor.device import choose_device, keep_freed_memory, processor
from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.images import load_squares
from braintumor.split import assign_subsets, kept_together
from braintumor.tables import TEST, TESTING, TRAIN, TRAINING, VALIDATION, read_table
from braintumor.training import Training, WeightAverage, predict
from scripts import PROJECT, bench, bench_report
from scripts.bench_layers import count_flops, dissect, name_of
from scripts.bench_setup import QUICK, Bench, Effort, Network, clock, elsewhere, feed, interleaved, make_training
from scripts.seed_procedure import EPOCHS, SeedTraining, make_loader, seed_network
from stages import workers


class LeftOut(Exception):  # noqa: N818, no error
    """A section cannot be measured here; the message says what it lacks."""


def train_as_seed(
    network: Network,
    raw: Path,
    files: dict[str, list[Path]],
    scale: tuple[float, float],
    device: torch.device,
) -> SeedTraining:
    """Set the seed's training up, and torch's threads as ours has them.

    Parameters
    ----------
    network : Network
    raw : Path
        Folder of the dataset.
    files : dict of subset -> list of Path
        What trains, and what validates where that is asked for.
    scale : tuple of two float
        Mean and deviation to normalise by, on a scale of 0 to 1.
    device : torch.device
    """
    torch.set_num_threads(network.train.threads)
    settings = network.size, network.train.batch_size, *scale
    train, validation = make_loader(raw / TRAINING, files[TRAIN], *settings), None
    if VALIDATION in files:
        validation = make_loader(raw / TESTING, files[VALIDATION], *settings, training=False)
    return SeedTraining(seed_network(network.build()), train, device, validation)


def against_seed(shared: Bench, results: dict) -> dict:
    """Train the seed's largest network in the seed's way and in ours, on the same images."""
    network = shared.networks["cnn3"]
    ours, batch_size = shared.training(network), network.train.batch_size
    scale = ours.train.mean, ours.train.deviation
    details = network, shared.raw, {TRAIN: shared.files}, scale, shared.device
    kept = train_as_seed(*details)
    with elsewhere(train_as_seed, *details) as seed:
        taken = interleaved(
            {
                "seed": lambda: seed("run_epoch"),
                "seed_feeding": lambda: feed(kept.loader),
                "seed_keeping_memory": kept.run_epoch,
                "ours": ours.run_epoch,
            },
            shared.device,
            shared.effort.rounds,
        )
    images = {side: len(ours.train) if side == "ours" else len(kept.loader) * batch_size for side in taken}
    return {
        "images": len(shared.files),
        "dataset": shared.raw.name == "raw",
        "size": network.size,
        "batch_size": batch_size,
        "precision": name_of(shared.precision),
        "images_per_second": {side: [images[side] / t for t in seconds] for side, seconds in taken.items()},
    }


def read_manifest(shared: Bench) -> pd.DataFrame:
    """Read the table of the whole dataset, which some sections train on."""
    data = shared.folder / "data"
    if not (data / "manifest.csv").exists() or not (data / "raw").exists():
        raise LeftOut("needs data/raw and data/manifest.csv; run make repro first")
    return read_table(data / "manifest.csv")


def cut(shared: Bench, table: pd.DataFrame, protocol: str) -> pd.Series:
    """Cut the dataset with the settings of params.yaml, but by some protocol."""
    split = shared.params.split
    table = kept_together(table, split.group_by)
    return assign_subsets(table, protocol, split.folds, split.fold, split.validation_folds, split.seed)


def whole_seed(shared: Bench, results: dict) -> dict:
    """Train the seed's largest network in the seed's way and protocol to its accuracy, for over an hour."""
    network, table = shared.networks["cnn3"], read_manifest(shared)
    subset = cut(shared, table, "seed")
    files = {name: [shared.raw / path for path in table["path"][subset == name]] for name in (TRAIN, VALIDATION)}
    squares = shared.temporary / "squares.npy"
    load_squares(files[TRAIN], squares, network.size, False, False, workers())
    scale = measure(np.load(squares, mmap_mode="r"), np.arange(len(files[TRAIN])))
    curve: list[tuple[float, float]] = []
    with elsewhere(train_as_seed, network, shared.raw, files, scale, shared.device) as training:
        accuracy, start = 0.0, time.perf_counter()
        while len(curve) < EPOCHS and accuracy < bench_report.REACHED:
            training("run_epoch")
            accuracy = training("score")
            curve.append((time.perf_counter() - start, accuracy))
            print(f"  epoch {len(curve)}: validation {accuracy:.3f}, {curve[-1][0]:.0f} s", flush=True)
    images = {"images": len(files[TRAIN]), "validation_images": len(files[VALIDATION])}
    return images | {"mean": scale[0], "deviation": scale[1], "curve": curve}


def to_accuracy(shared: Bench, results: dict) -> dict:
    """Train the default network in the seed's protocol to its accuracy, and by patient to the end."""
    data, params, network = shared.folder / "data", shared.params, shared.networks["default"]
    table = read_manifest(shared)
    if "images_per_second" not in results.get("seed", {}):
        raise LeftOut("needs the seed's speed; run the section seed first")
    if params.train.lr == "auto":
        raise LeftOut("needs a number for train.lr in params.yaml")
    squares = shared.temporary / "squares.npy"
    files = [data / "raw" / path for path in table["path"]]
    section = params.preprocess
    decoding = clock(
        lambda: load_squares(files, squares, network.size, section.crop, section.fit == "letterbox", workers()),
        shared.device,
    )
    subsets = {protocol: cut(shared, table, protocol) for protocol in ("seed", "grouped")}

    def train(protocol: str, enough: float = np.inf) -> tuple[int, list[tuple[float, float, float]]]:
        """Return the images of an epoch and the curve of a training, to an epoch with enough validation accuracy.

        The curve has for each epoch the seconds since the start, the accuracy on validation, and on the test
        images where each copy group weighs one; the last takes none of the time, and nothing is chosen by it.
        """
        start, images, section = time.perf_counter(), np.load(squares, mmap_mode="r"), network.train
        own = table.assign(subset=subsets[protocol])
        sets = make_sets(own, images, section.batch_size, section.balance, section.distinct, shared.device)
        training = make_training(network, sets.train, sets.validation, shared.precision)
        making = time.perf_counter()
        rows = np.flatnonzero(own["subset"] == TEST)
        labels = own["class"].map(sets.classes.index).to_numpy()[rows]
        scale = sets.train.mean, sets.train.deviation
        tested = Batches(images, rows, labels, section.batch_size, *scale, shared.device)
        weights = 1 / own.iloc[rows].groupby("copy_group")["path"].transform("size").to_numpy()
        start += time.perf_counter() - making
        curve: list[tuple[float, float, float]] = []
        accuracy = 0.0
        while not training.done and accuracy < enough:
            accuracy = training.run_epoch().validation.accuracy
            seconds, scoring = time.perf_counter() - start, time.perf_counter()
            right = predict(training.averaged, tested, shared.precision).argmax(1).numpy() == labels
            curve.append((seconds, accuracy, float(np.average(right, weights=weights))))
            print(f"  epoch {len(curve)}: validation {accuracy:.3f}, {seconds:.0f} s", flush=True)
            start += time.perf_counter() - scoring
        return sets.train.steps * section.batch_size, curve

    _, curve = train("seed", bench_report.REACHED)
    images, grouped_curve = train("grouped")
    found = {
        "seed_epochs": EPOCHS,
        "seed_images": int((subsets["seed"] == TRAIN).sum()),
        "decoding_seconds": decoding,
        "curve": curve,
        "grouped_images": images,
        "grouped_curve": grouped_curve,
        "epochs": network.train.epochs,
    }
    training = shared.training(network)
    _, flops = count_flops(training.model, *next(training.train.in_order()))
    found["flops_per_image"] = flops / network.train.batch_size
    return found


def feeding(shared: Bench, results: dict) -> dict:
    """Time making the batches against training on them, and our augmentation against other libraries'."""
    network = shared.networks["default"]
    training = shared.training(network)
    sides = {
        "feeding": lambda: feed(training.train.shuffled(training.augmentation, 0)),
        "step": training.run_epoch,
    }
    taken = interleaved(sides, shared.device, shared.effort.rounds)
    images, _ = next(training.train.in_order())
    images = (images * training.train.deviation + training.train.mean).clamp(0, 1).contiguous()
    ways = augmentations(training.augmentation, images)
    return {
        "size": network.size,
        "batch_size": network.train.batch_size,
        "seconds": {side: [t / network.steps for t in seconds] for side, seconds in taken.items()},
        "augmentation_seconds": interleaved(ways, shared.device, shared.effort.rounds, shared.effort.turn),
    }


def augmentations(ours: Augmentation, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return ways of changing images with one strength: ours, torchvision's and kornia's.

    Parameters
    ----------
    ours : Augmentation
    images : Tensor of shape (n, 1, size, size), float32, 0 to 1
    """
    import kornia.augmentation as K  # noqa: N812, the usual name; here, as its memory is not the training's

    generator, grey, linear = torch.Generator().manual_seed(0), images * 255, InterpolationMode.BILINEAR
    shift, zoom = (ours.shift, ours.shift), (1 / (1 + ours.scale), 1 + ours.scale)
    flip = v2.RandomHorizontalFlip(ours.flip)
    jitter = v2.ColorJitter(brightness=ours.brightness, contrast=ours.contrast)
    warps = (
        v2.RandomAffine(0, translate=shift, interpolation=linear),
        v2.RandomRotation(ours.rotation, linear),
        v2.RandomAffine(0, scale=zoom, interpolation=linear),
    )
    chain = v2.Compose([flip, *warps, jitter])
    single = v2.Compose([flip, v2.RandomAffine(ours.rotation, shift, zoom, interpolation=linear), jitter])
    steps = nn.Sequential(
        K.RandomHorizontalFlip(p=ours.flip),
        K.RandomAffine(ours.rotation, shift, zoom, p=1.0),
        K.RandomBrightness((1 - ours.brightness, 1 + ours.brightness), p=1.0),
        K.RandomContrast((1 - ours.contrast, 1 + ours.contrast), p=1.0),
    )
    return {
        "ours": lambda: ours(grey, ours.draw(len(grey), generator).to(grey.device), 0.2, 0.2),
        "torchvision v2, one warp, image by image": lambda: torch.stack([single(image) for image in images]),
        "torchvision v2, three warps, image by image": lambda: torch.stack([chain(image) for image in images]),
        "torchvision v2, one warp, the whole batch alike": lambda: single(images),
        "kornia": lambda: steps(images),
    }


def arithmetic(shared: Bench, results: dict) -> dict:
    """Measure the rate of matrix products, and what the networks reach of it, as a whole and by layer."""
    precisions = list(dict.fromkeys([torch.float32, shared.precision]))
    sizes = shared.effort.matrices + (shared.effort.gpu_matrices if shared.device.type == "cuda" else ())
    products: dict[str, Callable[[], object]] = {}
    for size in sizes:
        for precision in precisions:
            left, right = torch.randn(2, size, size, device=shared.device).to(precision)
            products[f"{name_of(precision)} {size}"] = lambda left=left, right=right: torch.mm(left, right)
    rates: dict[str, dict[str, list[float]]] = {}
    for name, seconds in interleaved(products, shared.device, shared.effort.rounds, shared.effort.turn).items():
        precision, size = name.split()
        rates.setdefault(precision, {})[size] = [2 * int(size) ** 3 / t for t in seconds]
    networks = {name: dissect(shared, network, precisions) for name, network in shared.networks.items()}
    return {"products_per_second": rates, "networks": networks}


class Contiguous(Batches):
    """Batches in torch's usual memory format."""

    def shuffled(self, *args: object, **settings: object) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `Batches` does; with one channel only the strides tell the formats apart."""
        for images, labels in super().shuffled(*args, **settings):
            yield images.clone(memory_format=torch.contiguous_format), labels


def switches(shared: Bench, results: dict) -> dict:
    """Train with each switch turned, for both networks."""
    return {"networks": {name: turn_switches(shared, network) for name, network in shared.networks.items()}}


def train_as_we_do(shared: Bench, network: Network) -> Training:
    """Set our training up in a process of its own."""
    choose_device(network.train.device, network.train.threads)
    return shared.training(network)


def turn_switches(shared: Bench, network: Network) -> dict:
    """Return the images per second of a network as it is trained, and with each switch turned."""
    sides = {
        "as it is": shared.training(network),
        "float32": shared.training(network, torch.float32),
        "contiguous": shared.training(network, kind=Contiguous),
        "no averaging": shared.training(network),
        "compiled": shared.training(network, compiled=True),
    }
    contiguous = sides["contiguous"]
    contiguous.average = WeightAverage(contiguous.model.to(memory_format=torch.contiguous_format))
    contiguous.averaged = contiguous.average.model
    sides["no averaging"].average.update = lambda: None
    if shared.device.type == "cuda":
        sides["no graph"] = shared.training(network)
        sides["no graph"].graphs = False
    for kind in ("for-loop", "foreach", "fused"):
        sides[kind] = shared.training(network)
        sides[kind].graphs = False  # only fused ones go into a graph
        for group in sides[kind].optimizer.param_groups:
            group["foreach"], group["fused"] = kind == "foreach", kind == "fused"
            if kind != "fused":  # these would read a rate on the GPU back at each step
                group["lr"], group["capturable"] = 0.0, False
    calls: dict[str, Callable[[], object]] = {name: side.run_epoch for name, side in sides.items()}
    first_turn, failure = take_first_turn(shared, calls["compiled"]) if shared.effort.compiles else NOT_TRIED
    if failure:
        del calls["compiled"]
    with ExitStack() as stack:
        if shared.device.type == "cpu":
            returning = stack.enter_context(elsewhere(train_as_we_do, shared, network))
            calls["memory handed back"] = lambda: returning("run_epoch")
        taken = interleaved(calls, shared.device, shared.effort.rounds)
    return {
        "name": network.train.model,
        "precision": name_of(shared.precision),
        "optimizer": network.train.optimizer,
        "images_per_second": {side: [len(sides["as it is"].train) / t for t in taken[side]] for side in taken},
        "first_compiled_turn_seconds": first_turn,
        "compile_failure": failure,
    }


NOT_TRIED = None, "not tried"


def take_first_turn(shared: Bench, call: Callable[[], object]) -> tuple[float | None, str | None]:
    """Take the first turn of a training; return its seconds, and why it failed where it did."""
    try:
        return clock(call, shared.device), None
    except Exception as error:  # whatever the machine's compiler or the card's memory lacks
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        print(f"  failed: {failure}", flush=True)
        return None, failure


def batch_sizes(shared: Bench, results: dict) -> dict:
    """Train the seed's largest network in batches of several sizes, as it is and compiled."""
    network, effort = shared.networks["cnn3"], shared.effort
    if shared.device.type == "cpu" and effort != QUICK:
        raise LeftOut("needs a GPU; a CPU is full with a small batch")
    calls, steps, failures = {}, {}, {}
    # Else the second size would be compiled for any.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        for size in effort.batch_sizes:
            count = max(1, network.steps * network.train.batch_size // size)
            other = replace(network, train=network.train.model_copy(update={"batch_size": size}), steps=count)
            for compiled in (False, True):
                training = shared.training(other, compiled=compiled)
                name = f"{size} {'compiled' if compiled else 'eager'}"
                tried = effort.compiles or not compiled
                _, failures[name] = take_first_turn(shared, training.run_epoch) if tried else NOT_TRIED
                if not failures[name]:
                    calls[name], steps[name] = training.run_epoch, count
        matrix = effort.gpu_matrices[0] if shared.device.type == "cuda" else effort.matrices[-1]
        left, right = torch.randn(2, matrix, matrix, device=shared.device).to(shared.precision)
        calls["product"] = lambda: torch.mm(left, right)
        taken = interleaved(calls, shared.device, effort.rounds, effort.turn)
    one = shared.training(network)
    _, flops = count_flops(one.model, *next(one.train.in_order()))
    return {
        "name": network.train.model,
        "size": network.size,
        "precision": name_of(shared.precision),
        "flops_per_image": flops / network.train.batch_size,
        "matrix": matrix,
        "products_per_second": [2 * matrix**3 / t for t in taken.pop("product")],
        "failures": failures,
        "step_seconds": {name: [t / steps[name] for t in seconds] for name, seconds in taken.items()},
    }


def memory(shared: Bench, results: dict) -> dict:
    """Measure the peak memory of a training process on the dataset, and on an array ten times as long."""
    images, size = shared.folder / "data" / "images.npy", shared.networks["default"].size
    dataset = images.exists()
    if not dataset:
        images = write_zeros(shared.temporary / "once.npy", shared.effort.rows, size)
    rows, size, _ = np.load(images, mmap_mode="r").shape
    found = {}
    for file in (images, write_zeros(shared.temporary / "ten_times.npy", 10 * rows, size)):
        quick = ["--quick"] if shared.effort == QUICK else []
        command = [sys.executable, "-m", "scripts.bench_training", "--child", str(file), *quick]
        seconds, peak = bench.measure(command, PROJECT)
        name = "once" if file == images else "ten times"
        found[name] = {"array_gb": file.stat().st_size / 1e9, "seconds": seconds, "peak_gb": peak}
    return {"dataset": dataset, "rows": rows, "size": size, "arrays": found}


def write_zeros(file: Path, rows: int, size: int) -> Path:
    """Write an array of black images that takes no room on the disk."""
    np.lib.format.open_memmap(file, "w+", np.uint8, (rows, size, size))
    return file


def train_alone(file: Path, shared: Bench) -> None:
    """Read every row of an array and then train on some of them: the process whose memory is measured."""
    network, images = shared.networks["default"], np.load(file, mmap_mode="r")
    rows, batch_size = np.arange(len(images)), network.train.batch_size
    some = rows[:: max(1, len(rows) // (network.steps * batch_size))]
    # Some rows go the way that all of them would.
    limit = None if images.nbytes <= resident_limit(shared.device) else 0
    scale = measure(images, rows)
    every, few = (
        Batches(images, own, np.zeros(len(own)), batch_size, *scale, shared.device, resident_bytes=limit)
        for own in (rows, some)
    )
    feed(every.in_order())
    make_training(network, few, few, shared.precision, lr=1e-3).run_epoch()


SECTIONS = {
    "seed": against_seed,
    "whole_seed": whole_seed,
    "time": to_accuracy,
    "feeding": feeding,
    "arithmetic": arithmetic,
    "switches": switches,
    "batch_sizes": batch_sizes,
    "memory": memory,
}
LONG = {"whole_seed"}  # runs only where it is named
USUAL = [name for name in SECTIONS if name not in LONG]


def circumstances(shared: Bench) -> dict[str, str | int]:
    """Return when and on what was measured, and how often."""
    card = f"{torch.cuda.get_device_name()} and " if shared.device.type == "cuda" else ""
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores of {processor()}"
    machine = f"{card}{cores}, torch {torch.__version__}"
    return {"date": str(date.today()), "machine": machine, "rounds": shared.effort.rounds}


def main(folder: Path, names: list[str], effort: Effort) -> dict:
    """Measure some sections and write the page; the figures of the other sections stay as they were.

    Parameters
    ----------
    folder : Path
        The project, or a folder laid out like it: data/ is read, docs/ and metrics/ are written.
    names : list of str
        Of the sections.
    effort : Effort
    """
    with tempfile.TemporaryDirectory() as temporary:
        shared = Bench(folder, Path(temporary), effort)
        name = "benchmark_gpu" if shared.device.type == "cuda" else "benchmark"
        file = folder / "metrics" / f"{name}.json"
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for section in names:
            print(f"{section}: {SECTIONS[section].__doc__}", flush=True)
            start = time.perf_counter()
            try:
                results[section] = circumstances(shared) | SECTIONS[section](shared, results)
            except LeftOut as reason:
                print(f"  left out: {reason}", flush=True)
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
            with replacing_file(file) as beside:
                beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            bench_report.write(results, folder / "docs", name)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be given again")
    parser.add_argument("--folder", type=Path, default=PROJECT, help="where data/ is read and docs/ written")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: the figures mean nothing")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else Effort()
    keep_freed_memory()
    try:
        if arguments.child:
            train_alone(arguments.child, Bench(arguments.folder, Path(), effort))
        else:
            main(arguments.folder, arguments.only or USUAL, effort)
    except UserError as error:
        sys.exit(f"error: {error}")
