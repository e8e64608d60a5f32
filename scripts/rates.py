"""The rates that scripts/scaling.py reckons with, measured on this machine with made-up data."""

import hashlib
import io
import mmap
import os
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from braintumor.batches import Augmentation, Batches, measure
from braintumor.checkpoint import fingerprint
from braintumor.copies import find_copies
from braintumor.device import choose_device, choose_precision
from braintumor.images import load_squares
from braintumor.manifest import inspect_images
from braintumor.params import Params, pick
from braintumor.split import grouped_folds
from braintumor.tables import read_table, write_table
from braintumor.training import Recipe, Training, epoch_scores
from scripts import bench
from scripts.demo import DVC
from stages import workers

CPU = torch.device("cpu")
FILE_BYTES = 22_000  # of one image of the Kaggle dataset: 150 MB of 7,023

# A view within a matrix product, memory that is only set aside, and an optimizer's marks for the profiler.
NO_KERNELS = (
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
)


@dataclass(frozen=True)
class Step:
    """What one step of a training asks of a card.

    Attributes
    ----------
    operations : float
        Kernels, whatever the number of images.
    fixed_bytes, image_bytes : float
        Read and written by the operations: once a step, and for each image.
    image_flops : float
        Of convolutions and matrix products.
    """

    operations: float
    fixed_bytes: float
    image_bytes: float
    image_flops: float


class Counter(TorchDispatchMode):
    """Counts the operations that run below it, and the bytes of all tensors that they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func not in NO_KERNELS:  # a view launches and moves nothing
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
            self.operations += 1
        return result


def make_training(model: nn.Module, images: np.ndarray, batch: int, precision: torch.dtype, p: Params) -> Training:
    """Make a training of the project's own recipe on all images but two, which validate."""
    rows, labels = np.arange(len(images)), np.arange(len(images)) % 4
    sets = [Batches(images, part, labels[part], batch, 0.5, 0.2, CPU) for part in (rows[:-2], rows[-2:])]
    recipe = replace(pick(Recipe, p.train), lr=0.1)  # any: train.lr may be auto
    return Training(model, *sets, pick(Augmentation, p.train), recipe, precision)


def count_step(make_model: Callable[[], nn.Module], size: int, batches: tuple[int, int], params: Params) -> Step:
    """Count what a step does: an epoch of two steps less one of one step, at two sizes of the batch."""

    def epoch(batch: int, steps: int) -> np.ndarray:
        images = np.zeros((batch * steps + 2, size, size), np.uint8)
        training = make_training(make_model(), images, batch, torch.bfloat16, params)
        training.optimizer.together = True  # Muon on a GPU; nothing to the others
        with Counter() as counter, FlopCounterMode(display=False) as flops:
            training.run_epoch()
        return np.array([counter.operations, counter.bytes, flops.get_total_flops()], float)

    small, large = (epoch(batch, 2) - epoch(batch, 1) for batch in batches)
    per_image = (large - small) / (batches[1] - batches[0])
    return Step(small[0], small[1] - batches[0] * per_image[1], per_image[1], per_image[2])


def rate(amount: float, work: Callable[[], object], times: int = 3) -> float:
    """Return what is done in a second by the fastest of several runs, the one that others disturbed least."""
    return amount / min(seconds(work) for _ in range(times))


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_training(
    make_model: Callable[[], nn.Module], size: int, params: Params, n: int = 770
) -> dict[str, float]:
    """Measure training, making batches, scoring an epoch and drawing its order."""
    choose_device("cpu", params.train.threads)
    images = np.random.default_rng(0).integers(0, 256, (n, size, size), np.uint8)
    precision = choose_precision("auto", CPU)
    training = make_training(make_model(), images, min(64, n - 2), precision, params)
    done = training.train.steps * training.train.batch_size
    labels = np.random.default_rng(0).integers(0, 4, 500 * n)
    feed = rate(done, lambda: list(training.train.shuffled(training.augmentation, 0)))
    training.run_epoch()  # the first one allocates
    return {
        "training": rate(done, training.run_epoch, 2),
        "feed": feed,
        "scores": rate(len(labels), lambda: epoch_scores(labels, labels[::-1], 0.0)),
        "order": rate(len(labels), lambda: torch.randperm(len(labels))),
    }


def measure_array(folder: Path, size: int, n: int = 40_000) -> dict[str, float]:
    """Measure reading an image array: random rows from memory and disk, hashes, its mean, and plain copying."""
    file = folder / "images.npy"
    array = np.lib.format.open_memmap(file, "w+", np.uint8, (n, size, size))
    for row in range(0, n, 1000):  # in pieces: a whole one would have to fit into memory
        part = array[row : row + 1000]
        part[:] = np.random.default_rng(row).integers(0, 256, part.shape, np.uint8)
    array.flush()
    del array, part  # what is mapped cannot be evicted
    nbytes, order = n * size**2, np.random.default_rng(1).permutation(n)
    rates = {
        "gather": rate(n // 4, lambda: read_rows(file, order[: n // 4])),
        "md5": rate(nbytes, lambda: hash_file(file, "md5"), 2),
        "fingerprint": rate(nbytes, lambda: fingerprint([file]), 2),
        "mean": rate(nbytes // 4, lambda: measure(np.load(file, mmap_mode="r"), np.arange(n // 4)), 2),
    }
    source, target = (np.ones(min(nbytes, 2**28), np.uint8) for _ in range(2))
    rates["memcpy"] = rate(source.nbytes, lambda: np.copyto(target, source))
    # Few rows where each may bring megabytes along, so that they do not bring each other.
    for name, rows, advised in (("disk", order[:16], False), ("advised", order[: n // 40], True)):
        evict(file)
        before = disk_bytes()
        rates[name] = rate(len(rows), lambda r=rows, a=advised: read_rows(file, r, a), 1)
        rates[f"{name}_bytes"] = (disk_bytes() - before) / len(rows)
    return rates


def read_rows(file: Path, rows: np.ndarray, advised: bool = False) -> None:
    """Read rows as `Batches` does from a mapped file, or with a batch's rows announced to the kernel first."""
    array = np.load(file, mmap_mode="r")  # anew, as each training does
    if advised:
        array._mmap.madvise(mmap.MADV_RANDOM)
    for part in np.array_split(rows, -(-len(rows) // 64)):
        for row in part if advised else ():
            start = array.offset + int(row) * array[0].nbytes
            page = start - start % mmap.PAGESIZE
            array._mmap.madvise(mmap.MADV_WILLNEED, page, start + array[0].nbytes - page)
        array[part]


def hash_file(file: Path, name: str) -> str:
    """Hash a file as DVC and `fingerprint` do."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, name).hexdigest()


def evict(file: Path) -> None:
    """Take a file out of the page cache, where the system can (Linux)."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """Return the bytes that this process has made the system read from disk, 0 where nobody counts them."""
    return psutil.Process().io_counters().read_bytes if hasattr(psutil.Process, "io_counters") else 0


def make_files(folder: Path, n: int) -> list[str]:
    """Write n different JPEGs of 512 x 512 and about 22 KB, all of one picture; return their paths in `folder`."""
    noise = np.random.default_rng(0).normal(110, 70, (64, 64)).clip(0, 255).astype(np.uint8)
    picture, content = Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC), io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    (folder / "Training/made_up").mkdir(parents=True)
    names = [f"Training/made_up/{i:06}.jpg" for i in range(n)]
    for i, name in enumerate(names):  # what follows a JPEG's end is no part of the picture
        (folder / name).write_bytes((content.getvalue() + i.to_bytes(8)).ljust(FILE_BYTES, b"\0"))
    return names


def measure_files(folder: Path, size: int, n: int = 400) -> dict[str, float]:
    """Measure reading image files as audit and preprocess do, on all cores, and what audit keeps of each."""
    raw, squares = folder / "raw", folder / "squares.npy"
    names = make_files(raw, n)
    files = [raw / name for name in names]
    tracemalloc.start()
    inspect_images(raw, names, 10**8, 1)
    kept = tracemalloc.get_traced_memory()[1] / n
    tracemalloc.stop()
    return {
        "audit": rate(n, lambda: inspect_images(raw, names, 10**8, workers()), 2),
        "audit_bytes": kept,
        "preprocess": rate(n, lambda: load_squares(files, squares, size, False, False, workers()), 2),
    }


def measure_copies(sizes: tuple[int, int] = (4096, 8192)) -> dict[str, float]:
    """Measure the search for copies: pairs of images in a second at two numbers of images."""
    rates = {}
    for name, n in zip(("copies_small", "copies"), sizes, strict=True):
        signatures = np.random.default_rng(0).standard_normal((n, 1024), np.float32) / 32
        rates[name] = rate(n**2 / 2, lambda s=signatures: find_copies(s, [*map(str, range(len(s)))], 0.99), 2)
    return rates


def measure_tables(folder: Path, n: int = 100_000) -> dict[str, float]:
    """Measure a split table in memory, and cutting it into folds."""
    i = np.arange(n)
    table = pd.DataFrame(
        {"path": [f"Training/glioma/{row:09}.jpg" for row in i], "class": np.where(i % 3, "glioma", "notumor")}
    ).assign(copy_group=i // 2, patient=(i // 25).astype(str), group=i // 2, subset="train")
    write_table(table, folder / "split.csv")
    few = table.iloc[: n // 10]
    return {
        "table": rate(n, lambda: read_table(folder / "split.csv"), 2),
        "table_bytes": read_table(folder / "split.csv").memory_usage(index=False, deep=True).sum() / n,
        "folds": rate(len(few), lambda: grouped_folds(few, 5, 0), 1),
    }


def measure_dvc(folder: Path, sizes: tuple[int, int] = (500, 6500)) -> dict[str, float]:
    """Measure what each further file of a directory costs DVC: when it is added, and when nothing has changed."""
    costs = []
    for n in sizes:
        repository = folder / f"dvc{n}"
        make_files(repository / "raw", n)
        for command in ("init --quiet --no-scm", "config core.analytics false", "config core.check_update false"):
            subprocess.run([*DVC, *command.split()], cwd=repository, check=True)
        added = bench.measure([*DVC, "add", "--quiet", "raw"], repository)
        idle = min(bench.measure([*DVC, "status", "--quiet"], repository)[0] for _ in range(3))
        costs.append([*added, idle])
    add, memory, idle = (np.array(costs[1]) - costs[0]) / (sizes[1] - sizes[0])
    return {"dvc_add": 1 / add, "dvc_bytes": memory * 1e9, "dvc_idle": 1 / idle, "dvc_start": costs[0][2]}
