"""Reckon what epochs and other stages take from ten thousand to a hundred million images, and what gives out.

Measures this machine's rates (scripts/rates.py), takes those of graphics cards and networks as assumed below, and
writes the tables and the plot of docs/scaling.md. Needs no data; nothing else should run on the machine.
"""

import math
import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from torch import nn
from torchvision.models import resnet50

from braintumor import plots
from braintumor.device import keep_freed_memory, processor
from braintumor.distributed import Ranks
from braintumor.models import Architecture, count_parameters
from braintumor.pages import fill_file, table
from braintumor.params import load_params
from scripts import PROJECT, run_script
from scripts import rates as measured
from scripts.rates import Step
from stages import workers

# But for the speed in small steps nothing here is measured: each is a data sheet's, or a guess that says so.
H100 = "[H100 data sheet](https://www.nvidia.com/en-us/data-center/h100/)"
A100 = "[A100 data sheet](https://www.nvidia.com/en-us/data-center/a100/)"
RESNET50 = "[NVIDIA](https://github.com/NVIDIA/DeepLearningExamples/tree/master/PyTorch/Classification/ConvNets)"
DGX = "[DGX H100](https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-enterprise-ai)"
H200 = "[measured on an H200](training.md#on-a-gpu), which has the arithmetic of an H100"
NVME = "[Samsung PM9A3](https://heise.de/-4720224)"
ASSUMED = {
    "card_memory": (80, 1e9, "GB of memory on a card, half of it for a resident set", H100),
    "card_flops": (989, 1e12, "TFLOP/s of a card in bfloat16, dense", H100),
    "flops_share": (0.4, 1, "of a card's TFLOP/s reached (binds nowhere here)", "guess"),
    "card_bandwidth": (3.35, 1e12, "TB/s of a card's memory", H100),
    "a100_bandwidth": (2.039, 1e12, "TB/s of an A100's memory", A100),
    "a100_resnet50": (2470, 1, "images/s of ResNet-50's training on it, mixed precision", RESNET50),
    "small_steps": (17_000, 1, "images/s of `resnet` with SGD, 64 a step, each step a CUDA graph", H200),
    "launch": (5, 1e-6, "µs of the host to launch an operation, or a graph of them", "guess"),
    "pcie": (64, 1e9, "GB/s from host to card", H100),
    "nvlink": (450, 1e9, "GB/s between cards of one machine, one way", H100),
    "infiniband": (50, 1e9, "GB/s of each card's port (400 Gb/s) to other machines", DGX),
    "hop": (10, 1e-6, "µs of one message of an all-reduce", "guess"),
    "asked": (200, 1e-6, "µs of one message of gloo's (190 once between two processes of one CPU)", "guess"),
    "one_memory": (256, 1e9, "GB of main memory in a machine with one card", "guess"),
    "node_memory": (2000, 1e9, "GB of main memory in a machine with eight", DGX),
    "read": (100, 1e-6, "µs until an NVMe disk answers", "guess"),
    "disk": (6.5, 1e9, "GB/s of an NVMe disk", NVME),
    "disks": (8, 1, "NVMe disks in a machine with eight cards", DGX),
    "read_ahead": (
        128,
        1024,
        "KiB (`read_ahead_kb`) that the kernel reads for a row not in its cache",
        "Linux's default",
    ),
    "shared_read": (1000, 1e-6, "µs until a shared filesystem answers", "guess"),
    "shared": (10, 1e9, "GB/s of a shared filesystem for all machines together", "guess"),
    "batch": (512, 1, "images of a step on each card", "guess"),
}
A = {name: value * unit for name, (value, unit, _, _) in ASSUMED.items()}
SIZES = [10**k for k in range(4, 9)]
YEAR = 365.25 * 86400
BEFORE = "train: before its first step"


@dataclass(frozen=True)
class Design:
    """A way to train.

    Attributes
    ----------
    name : str
    feeds : tuple of {"resident", "cached", "disk"}
        Where images may come from: the card's memory, the page cache, or a disk as the cache is too small.
    memory : float
        Main memory of a machine, bytes.
    read, read_bytes : float
        Seconds of reading one row at random, and the bytes that this moves.
    disk : float
        Bytes a second that the reads of all machines share.
    cards, nodes : int
        Cards of a machine, 0 for its CPU, and machines.
    """

    name: str
    feeds: tuple[str, ...]
    memory: float
    read: float
    read_bytes: float
    disk: float
    cards: int = 1
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """Processes that train, all machines together."""
        return max(1, self.cards) * self.nodes


@dataclass(frozen=True)
class Work:
    """What training costs, counted and measured.

    Attributes
    ----------
    step : Step
    share : float
        Of a card's memory bandwidth that the operations of a step reach.
    least : float
        Seconds that a step takes on a card at least, however few its images: one small operation after another.
    image_bytes, table_bytes : float
        Of an image in images.npy, and of what each process knows of it.
    gradient_bytes : float
        That an all-reduce moves.
    cpu, gather, bookkeeping : float
        Seconds an image: its training on a CPU, copying its row from the page cache, its order and its scores.
    """

    step: Step
    share: float
    least: float
    image_bytes: float
    table_bytes: float
    gradient_bytes: float
    cpu: float
    gather: float
    bookkeeping: float


def card_seconds(images: float, work: Work) -> float:
    """Return a card's seconds for a step of some images: arithmetic, memory, or one operation after another."""
    step = work.step
    arithmetic = images * step.image_flops / (A["card_flops"] * A["flops_share"])
    memory = (step.fixed_bytes + images * step.image_bytes) / (A["card_bandwidth"] * work.share)
    return max(arithmetic, memory, work.least)


def all_reduce_seconds(size: float, ranks: int, bandwidth: float) -> float:
    """Return the seconds of summing `size` bytes over all ranks: a ring for the bytes, a tree for the messages."""
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * math.ceil(math.log2(ranks)) * A["hop"]


def missed_share(design: Design, images: float, work: Work) -> float:
    """Return the share of rows that the page cache cannot hold; above 1 where not even the tables have room."""
    tables = images * work.table_bytes * max(1, design.cards)
    return max(0.0, 1 - (design.memory - tables) / (images * work.image_bytes))


def choose_feed(design: Design, images: float, work: Work) -> str | None:
    """Return where the images come from, None where the design has no room for them."""
    if "resident" in design.feeds and images * work.image_bytes <= A["card_memory"] / 2:
        return "resident"
    missed = missed_share(design, images, work)
    feed = "disk" if missed else "cached"
    return feed if feed in design.feeds and missed <= 1 else None


def step_seconds(design: Design, images: float, batch: float, work: Work) -> dict[str, float]:
    """Return how long each resource is busy with a step; as they overlap, it takes as long as the longest.

    Parameters
    ----------
    design : Design
    images : float
        In the training set.
    batch : float
        Images of the step on one card.
    work : Work
    """
    feed = choose_feed(design, images, work)
    missed = missed_share(design, images, work) if feed == "disk" else 0.0
    busy = {"disk": design.ranks * batch * missed * design.read_bytes / design.disk}
    # One thread of the host reads rows and then computes or launches.
    reading, own = batch * missed * design.read, batch * work.cpu
    if design.cards:
        # Only a process by itself records its step as a graph, whose operations start each other.
        own = A["launch"] * (work.step.operations if design.ranks > 1 else 1)
        reading += batch * (1 - missed) * work.gather * (feed != "resident")
        busy["card"] = card_seconds(batch, work)
        busy["PCIe"] = batch * work.image_bytes / A["pcie"] * (feed != "resident")
    busy["row reads" if reading > own else "launches" if design.cards else "CPU"] = reading + own
    if design.ranks > 1:
        bandwidth = A["infiniband" if design.nodes > 1 else "nvlink"]
        busy["network"] = all_reduce_seconds(work.gradient_bytes, design.ranks, bandwidth)
        # Whether one of them has been told to stop goes round twice, through gloo.
        asked = 2 * (design.ranks - 1) * A["asked"]
        busy["asking"] = asked / Ranks(0, design.ranks).steps_to_answer
    return busy


def epoch_seconds(design: Design, images: float, work: Work) -> tuple[float, str]:
    """Return the seconds of a pass over the training set and what takes most of them; NaN where it has no room."""
    if choose_feed(design, images, work) is None:
        return math.nan, ""
    batch = min(A["batch"], images / design.ranks)
    busy = step_seconds(design, images, batch, work)
    bound = max(busy, key=busy.get)
    steps, kept = images / (batch * design.ranks) * busy[bound], images * work.bookkeeping
    return steps + kept, bound if steps > kept else "bookkeeping"


def stage_seconds(images: float, r: dict[str, float], image_bytes: float) -> dict[str, float]:
    """Return the seconds of what is not training, at measured rates."""
    reading = image_bytes * (1 / r["fingerprint"] + 1 / r["mean"])
    return {
        "audit: search for copies": images**2 / 2 / r["copies"],
        "audit: reading": images / r["audit"],
        "preprocess": images / r["preprocess"],
        "`dvc add` of the image files": r["dvc_start"] + images / r["dvc_add"],
        "split: two cuts": 2 * images / r["folds"],
        BEFORE: images * (reading + 1 / r["table"]),
        "DVC's MD5 of images.npy": images * image_bytes / r["md5"],
        "`dvc status`, nothing changed": r["dvc_start"] + images / r["dvc_idle"],
    }


def designs(r: dict[str, float]) -> list[Design]:
    """Return the designs that are compared."""
    local = A["read"] + A["read_ahead"] / A["disk"], A["read_ahead"]
    far = A["shared_read"] + A["read_ahead"] / A["shared"], A["read_ahead"], A["shared"]
    memory, every = psutil.virtual_memory().total, ("resident", "cached", "disk")
    return [
        Design("a: this CPU", ("cached", "disk"), memory, 1 / r["disk"], r["disk_bytes"], math.inf, 0),
        Design("b: one card, resident", ("resident",), A["one_memory"], *local, A["disk"]),
        Design("c: one card, page cache", ("cached",), A["one_memory"], *local, A["disk"]),
        Design("d: one card, disk", ("disk",), A["one_memory"], *local, A["disk"]),
        Design("e: eight cards", every, A["node_memory"], *local, A["disk"] * A["disks"], 8),
        Design("f: 8 machines of eight", every, A["node_memory"], *far, 8, 8),
    ]


def measure_all() -> tuple[dict[str, float], Work]:
    """Measure every rate of this machine, and count what a step does."""
    params = load_params(PROJECT / "params.yaml")
    size, train = params.preprocess.size, params.train
    network = Architecture.of(train, size, 4)
    step = measured.count_step(network.build, size, (8, 16), params)
    # What the H200 trained.
    timed = params.model_copy(update={"train": train.model_copy(update={"model": "resnet", "optimizer": "sgd"})})
    timed_network = Architecture.of(timed.train, size, 4)
    timed_step = measured.count_step(timed_network.build, size, (8, 16), timed)
    # Three channels, as NVIDIA trained it.
    parts = OrderedDict(body=nn.Conv2d(1, 3, 1), head=resnet50())
    large = measured.count_step(lambda: nn.Sequential(parts), 224, (1, 2), params)
    with tempfile.TemporaryDirectory(dir=PROJECT / "data") as folder:  # on the disk that the pipeline uses
        r = measured.measure_array(Path(folder), size) | measured.measure_files(Path(folder), size)
        r |= measured.measure_tables(Path(folder)) | measured.measure_dvc(Path(folder))
    r |= measured.measure_copies() | measured.measure_training(network.build, size, params)
    work = Work(
        step=step,
        share=large.image_bytes * A["a100_resnet50"] / A["a100_bandwidth"],
        least=64 / A["small_steps"] / timed_step.operations * step.operations,
        image_bytes=size**2,
        table_bytes=r["table_bytes"] + 16,  # a label and a place in the order, both int64
        gradient_bytes=4 * count_parameters(network.build()),
        cpu=1 / r["training"],
        gather=1 / r["gather"],
        bookkeeping=1 / r["order"] + 1 / r["scores"],
    )
    return r, work


def number(value: float) -> str:
    """Write a number in two digits, such as 0.48, 31, 4,700 or 1.6 million; three where they are whole."""
    value = float(f"{value:.2g}") if value < 100 or value >= 1000 else round(value)
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def duration(value: float) -> str:
    """Write seconds in the unit that suits them, NaN as a dash."""
    units = ((YEAR, "years"), (86400, "days"), (3600, "h"), (60, "min"), (0, "s"))
    unit, name = next(unit for unit in units if not value < 2 * unit[0])
    return "-" if math.isnan(value) else f"{number(value / (unit or 1))} {name}"


def limits(r: dict[str, float], work: Work) -> list[list[str]]:
    """Say of each resource from where on it gives out, and what one would do then."""
    memory, image, row, n = psutil.virtual_memory().total, work.image_bytes, work.table_bytes, number
    step, card = card_seconds(A["batch"], work), card_seconds(1e9, work) / 1e9
    cached = A["one_memory"] / (image + row), A["node_memory"] / (image + 8 * row)
    cold = A["read"] + A["read_ahead"] / A["disk"]
    moved, hops = (all_reduce_seconds(size, 64, 1) for size in (work.gradient_bytes, 0))
    gbits = 8e-9 * (moved - hops) / (step - hops)
    # A table's rows, whose cells go on in further lines here.
    lines = f"""\
memory of a card | {n(A["card_memory"] / 2 / image)} images, with any number of cards: each holds the whole set
| it streams by itself
main memory as page cache | {n(cached[0])} images with one card, {n(cached[1])} in a machine of eight; from there
 on {n(1 / cold)} rows/s a process come from disk, while a card takes {n(1 / card)}
| announce a step's rows first (`MADV_WILLNEED`: here {n(r["advised"])} rows/s in place of {n(r["disk"])});
 then shards read in sequence and mixed in a buffer (webdataset, ffcv)
operations too small for a card | below {n(work.least / card)} images a step and card
| a larger `train.batch_size`, and `train.lr` tuned again; `train.compile`, which makes one of several
scores of an epoch, on one core | as long as training itself on {n(card / work.bookkeeping)} cards
| count the confusion matrix on the cards and sum it
network between machines | below {n(gbits)} Gb/s a card at {n(A["batch"])} images a step; more with more weights
| a larger step, gradients in bfloat16
audit: search for copies | slower than reading from {n(2 * r["copies"] / r["audit"])} images, a day at
 {n(math.sqrt(2 * r["copies"] * 86400))}; memory for signatures at {n(memory / r["audit_bytes"])} | candidates from
 approximate nearest neighbours (faiss), compared exactly; signatures in a mapped file
split: group by group | an hour at {n(1800 * r["folds"])} images | cut by a hash of the group
DVC: a file for each image | a minute to see that nothing changed at {n(60 * r["dvc_idle"])} files, an hour to add
 {n(3600 * r["dvc_add"])}, memory at {n(memory / r["dvc_bytes"])} | tar shards of a GB, each one file to DVC
DVC: one images.npy | an hour to hash at {n(3600 * r["md5"] / image)} images; one more image makes all of it anew
| shards, of which only new ones are hashed, stored and sent
train: hash and mean of all images first | ten minutes at {n(600 / stage_seconds(1, r, image)[BEFORE])} images
| the hash that dvc.lock has; the mean from preprocess"""
    return [line.split(" | ") for line in lines.replace("\n|", " |").replace("\n ", " ").split("\n")]


def report(r: dict[str, float], work: Work, load: float) -> str:
    """Write what was measured, what is assumed and what follows, as tables."""
    step, every = work.step, designs(r)
    n, memory = number, psutil.virtual_memory().total
    rates = {
        "training": f"{n(r['training'])} images/s; making its batches alone {n(r['feed'])}; scoring an epoch "
        f"{n(r['scores'])}",
        "images.npy, rows in random order": f"{n(r['gather'])} images/s from the page cache (memory is copied at "
        f"{n(r['memcpy'] / 1e9)} GB/s); {n(r['disk'])} from disk, {n(r['disk_bytes'] / 1e3)} KB read for each; "
        f"{n(r['advised'])} from disk, 64 announced at a time, {n(r['advised_bytes'] / 1e3)} KB for each",
        "images.npy as a whole": f"MD5 {n(r['md5'] / 1e6)} MB/s for DVC; before training hash "
        f"{n(r['fingerprint'] / 1e6)} MB/s and mean {n(r['mean'] / 1e6)}",
        "audit": f"reads {n(r['audit'])} images/s and keeps {n(r['audit_bytes'] / 1e3)} KB of each; compares "
        f"{n(r['copies_small'])} pairs/s of 4,096 images, {n(r['copies'])} of 8,192",
        "preprocess, split": f"{n(r['preprocess'])} images/s; one cut {n(r['folds'])} images/s; reading the table "
        f"{n(r['table'])} rows/s, {n(r['table_bytes'])} bytes of memory each",
        "a directory of files in DVC": f"adds {n(r['dvc_add'])} files/s with {n(r['dvc_bytes'] / 1e3)} KB of "
        f"memory each; sees that {n(r['dvc_idle'])} files/s have not changed, after {n(r['dvc_start'])} s",
    }
    sources: dict[str, list[str]] = {}
    for value, _, what, source in ASSUMED.values():
        sources.setdefault(source, []).append(f"{value:g} {what}")
    epochs, speeds = [], []
    for design in every:
        cells = (epoch_seconds(design, images, work) for images in SIZES)
        epochs.append([design.name, *(f"{duration(value)} {bound}".strip() for value, bound in cells)])
    for design in (every[1], *every[4:]):
        line = [f"{design.ranks} card{'s' * (design.ranks > 1)}"]
        for batch in (64, 1024, A["batch"] * design.ranks):
            busy = step_seconds(design, 10**6, batch / design.ranks, work)
            line.append(f"{number(batch / max(busy.values()))} {max(busy, key=busy.get)}")
        speeds.append(line)
    stages = [stage_seconds(images, r, work.image_bytes) for images in SIZES]
    sizes = [number(images) for images in SIZES]
    return "\n\n".join(
        [
            f"Measured on {date.today()}, {workers()} cores of {processor()} with {n(memory / 1e9)} GB, at a load "
            f"of {load:.1f} before{' (not quiet: rates are too low)' * (load > 0.5)}. Training, audit and "
            "preprocess use all cores.",
            table(["measured", ""], [list(row) for row in rates.items()]),
            f"Counted: a step of the default network is {step.operations:.0f} operations, each taken for "
            f"{n(1e6 * work.least / step.operations)} µs, as in the measured steps of 64 images. They move "
            f"{n(step.fixed_bytes / 1e6)} MB and {n(step.image_bytes / 1e6)} MB an image; its convolutions and "
            f"products take {n(step.image_flops / 1e9)} GFLOP an image. By the same count, ResNet-50 reached "
            f"{n(100 * work.share)}% of an A100's bandwidth; that share is taken for every card.",
            table(["assumed", "from"], [["; ".join(values), source] for source, values in sources.items()]),
            table(
                ["images/s with `train.batch_size`", "64 (default)", "1,024", f"{n(A['batch'])} a card"], speeds
            ),
            table([f"an epoch, {n(A['batch'])} images a step and card", *sizes], epochs),
            table(["other stages", *sizes], [[name, *(duration(s[name]) for s in stages)] for name in stages[0]]),
            table(["what gives out", "from", "then"], limits(r, work)),
        ]
    )


def draw(r: dict[str, float], work: Work) -> Figure:
    """Draw the time of an epoch for each design, and that of the other stages."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2)
    training, others = figure.subplots(1, 2, sharey=True)
    n = np.logspace(4, 8, 801)
    colours = ["#666666", "#f4a259", "#4269d0", "#b5179e", "#2a9d8f", "#111111"]
    for design, colour in zip(designs(r), colours, strict=True):
        y = np.array([epoch_seconds(design, images, work)[0] for images in n])
        feeds = [choose_feed(design, images, work) for images in n]
        width = 6 if design.feeds == ("resident",) else 2  # seen where another lies on it
        training.loglog(n, y, color=colour, label=design.name, linewidth=width)
        for i in range(len(n) - 1):
            if feeds[i] and feeds[i + 1] != feeds[i] and feeds[i + 1] in (None, "disk"):
                training.plot(n[i], y[i], "o" if feeds[i + 1] else "X", color=colour, markersize=9)
    training.plot([], [], "o", color="#666666", label="page cache full, reads from disk")
    training.plot([], [], "X", color="#666666", label="memory full, goes no further")
    lines = [stage_seconds(images, r, work.image_bytes) for images in n]
    for i, name in enumerate(lines[0]):
        style = ("-", "--")[i % 2]
        others.loglog(n, [line[name] for line in lines], style, label=name.replace("`", ""), linewidth=2)
    ticks = [0.01, 1, 60, 3600, 86400, YEAR, 100 * YEAR]
    for axis, title in ((training, "One epoch of training"), (others, "Other stages, on the measured machine")):
        axis.set(xlabel="images", title=title, xlim=(1e4, 1e8), ylim=(5e-3, 1e12))
        axis.set_xticks(SIZES, [number(size) for size in SIZES])
        axis.set_yticks(ticks, ["10 ms", "1 s", "1 min", "1 h", "1 day", "1 year", "100 years"])
        axis.minorticks_off()
        axis.grid(color="#dddddd", linewidth=0.8)
        axis.legend(loc="upper left", ncols=2, fontsize=8.5, framealpha=1)
    training.set_ylabel("time")
    return figure


def main() -> None:
    torch.set_num_threads(workers())
    load = os.getloadavg()[0]  # whoever reads the figures should know whether the machine was quiet
    keep_freed_memory()
    r, work = measure_all()
    tables = report(r, work, load)
    print(tables)
    page = PROJECT / "docs" / "scaling.md"
    fill_file(page, {"scaling": tables})
    plots.save(draw(r, work), page.with_suffix(".png"))


if __name__ == "__main__":
    run_script(main)
