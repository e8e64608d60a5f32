"""Compare settings of the training on validation images, most of them of other people; no test image is read.

    python -m scripts.tuning [NAME ...]

Trains the variants of tuning.yaml that metrics/tuning.csv lacks, or the named ones among them, one after the
other, and appends a row for each. Several of it may run side by side on different names.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch.nn.functional as F  # noqa: N812, the usual name
from matplotlib.figure import Figure
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from braintumor.batches import make_sets
from braintumor.device import choose_device
from braintumor.epochs import make_training
from braintumor.errors import UserError
from braintumor.images import load_squares
from braintumor.models import Architecture, count_parameters
from braintumor.pages import fill_file, table
from braintumor.params import Params, Preprocess, load_params, pick, read_settings, with_overrides
from braintumor.plots import COLOURS, save
from braintumor.split import assign_subsets
from braintumor.tables import TEST, TRAIN, TRAINING, UNUSED, VALIDATION, read_images, read_table
from braintumor.training import Recipe, predict
from scripts import run_script
from scripts.demo import PROJECT
from stages import workers

VARIANTS = PROJECT / "tuning.yaml"
RESULTS = PROJECT / "metrics/tuning.csv"
PAGE = PROJECT / "docs/training.md"
CURVE = PROJECT / "docs/learning_curve.png"
THREE = "people", "images", "mixed"  # the parts of `three_ways`


@dataclass(frozen=True)
class Result:
    """What one training of one variant came to on the validation images.

    Attributes
    ----------
    protocol : str
        What validates: ``grouped`` and ``official`` as in params.yaml; ``people``, ``images`` and ``mixed`` are
        the three parts of `three_ways`, each of which has a row.
    distinct_accuracy : float
        Each copy group weighs one, as the share of its images that are right.
    distinct_loss : float
        Cross-entropy with the same weights.
    train_patients : int
        Known ones with an image in training.
    """

    name: str
    protocol: str
    seed: int
    distinct_accuracy: float
    distinct_loss: float
    accuracy: float
    train_accuracy: float
    train_patients: int
    train_images: int
    parameters: int
    epochs: int
    seconds: int


def leave_out(table: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Train on the images of a share of each class's groups (patients, where they are known) only."""
    trained = table[table["subset"] == TRAIN]
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for _, groups in trained.groupby("class")["group"].unique().items():
        kept |= set(rng.permutation(np.sort(groups))[: round(share * len(groups))])
    left_out = (table["subset"] == TRAIN) & ~table["group"].isin(kept)
    return table.assign(subset=table["subset"].where(~left_out, UNUSED))


def three_ways(table: pd.DataFrame, cut: int) -> pd.DataFrame:
    """Let one training be validated as `grouped` by patient, as `grouped` by copy and as `official` are tested.

    Of what does not test, a quarter, whole groups (patients, where they are known), are the first part; of the
    rest a sixth, whole groups of copies, the second; of the rest an eighth, image by image, the third, many of
    which have a copy in training.

    Parameters
    ----------
    table : DataFrame
        As data/manifest.csv, with a column ``subset``.
    cut : int
        Seed of the cuts. The largest groups are dealt out first whatever it is, so two cuts share many of them.

    Returns
    -------
    DataFrame
        `table` with other subsets, and a column ``part``: ``people``, ``images``, ``mixed``, or ``unused``.
    """
    left = table[table["subset"] != TEST]
    part = pd.Series(UNUSED, table.index)
    for name, folds, group in zip(THREE, (4, 6, 8), ("group", "copy_group", None), strict=True):
        cutter = (StratifiedGroupKFold if group else StratifiedKFold)(folds, shuffle=True, random_state=cut)
        kept, taken = next(cutter.split(left, left["class"], left[group] if group else None))
        part[left.index[taken]] = name
        left = left.iloc[kept]
    subset = pd.Series(np.where(part == UNUSED, UNUSED, VALIDATION), table.index)
    subset[left.index] = TRAIN
    return table.assign(subset=subset, part=part)


def make_images(table: pd.DataFrame, preprocess: Preprocess) -> np.ndarray:
    """Return the images of the stage preprocess, or other ones, made for a variant that asks for them."""
    if preprocess == load_params(PROJECT / "params.yaml").preprocess:
        return read_images(PROJECT / "data/images.npy", table)
    files = [PROJECT / "data/raw" / path for path in table["path"]]
    with TemporaryDirectory() as folder:
        file = Path(folder, "images.npy")
        load_squares(files, file, preprocess.size, preprocess.crop, preprocess.fit == "letterbox", workers())
        return np.load(file)


def run_variant(name: str, params: Params, share: float, cut: int | None) -> tuple[list[Result], pd.DataFrame]:
    """Train with some params and score the newest averaged weights on the validation images, or on three parts.

    Parameters
    ----------
    name : str
    params : Params
    share : float
        See `leave_out`.
    cut : int or None
        See `three_ways`; None for the validation images of the split.

    Returns
    -------
    results : list of Result
        One for each part.
    predictions : DataFrame
        Of each validation image.
    """
    train, split = params.train, params.split
    device = choose_device(train.device, train.threads)
    table = read_table(PROJECT / "data/manifest.csv")
    array = make_images(table, params.preprocess)
    if split.group_by == "copy":
        table["group"] = table["copy_group"]
    table["subset"] = assign_subsets(
        table, split.protocol, split.folds, split.fold, split.validation_folds, split.seed, split.source
    )
    if cut is None:
        table = leave_out(table, share, train.seed).assign(part=split.protocol)
    else:
        table = three_ways(table, cut)
    sets = make_sets(table, array, train.batch_size, train.balance, train.distinct, device)
    architecture = Architecture.of(train, array.shape[1], len(sets.classes))
    training = make_training(train, architecture, pick(Recipe, train), sets, device)
    validated = table.iloc[sets.validation.rows].reset_index(drop=True)
    start = time.perf_counter()
    while not training.done:
        epoch = training.run_epoch()
        print(
            f"{name}, seed {train.seed}: epoch {epoch.number}/{train.epochs}, train {epoch.train.accuracy:.4f}, "
            f"validation {epoch.validation.accuracy:.4f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    seconds = time.perf_counter() - start
    logits = predict(training.averaged, training.validation, training.precision)
    labels = sets.validation.labels.cpu()
    right = (logits.argmax(1) == labels).numpy().astype(float)
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    predictions = validated[["path", "class", "copy_group", "patient", "group", "part"]].copy()
    predictions["prediction"] = [sets.classes[i] for i in logits.argmax(1)]
    results = []
    for part, rows in validated.groupby("part", sort=False):
        weight = 1 / rows.groupby("copy_group")["path"].transform("size").to_numpy()
        results.append(
            Result(
                name,
                part,
                train.seed,
                round(float(np.average(right[rows.index], weights=weight)), 4),
                round(float(np.average(losses[rows.index], weights=weight)), 4),
                round(float(right[rows.index].mean()), 4),
                round(epoch.train.accuracy, 4),
                table["patient"][table["subset"] == TRAIN].nunique(),
                len(sets.train),
                count_parameters(training.model),
                train.epochs,
                round(seconds),
            )
        )
    return results, predictions


def spread(values: pd.Series, digits: int, unit: str = "") -> str:
    """Return the mean of values and, from two on, their standard deviation."""
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{unit}{deviation}"


def summary(results: pd.DataFrame) -> str:
    """Return the variants, the best first, with mean and standard deviation over their seeds."""
    lines = []
    by_name = list(results.groupby("name", sort=False))
    for name, rows in sorted(by_name, key=lambda pair: -pair[1]["distinct_accuracy"].mean()):
        cells = [
            spread(100 * rows["distinct_accuracy"], 1, "%"),
            spread(rows["distinct_loss"], 3),
            f"{100 * rows['train_accuracy'].mean():.1f}%",
            f"{rows['parameters'].mean():,.0f}",
            f"{rows['epochs'].mean():.0f}",
        ]
        lines.append([name, str(len(rows)), *cells])
    header = ["variant", "seeds", "right, distinct images", "cross-entropy", "right in training"]
    return table([*header, "parameters", "epochs"], lines)


def summary_three_ways(results: pd.DataFrame) -> str:
    """Return what the variants get in each part, in their order, with mean and deviation over their seeds."""
    lines = []
    for name, rows in results.groupby("name", sort=False):
        parts = [rows[rows["protocol"] == part] for part in THREE]
        cells = [
            f"{spread(100 * part['distinct_accuracy'], 1, '%')} ({part['distinct_loss'].mean():.3f})"
            for part in parts
        ]
        lines.append([name, str(len(parts[0])), *cells, f"{rows['epochs'].iloc[0]}"])
    header = ["variant", "seeds", "by patient", "by copy", "image by image", "epochs"]
    return table(header, lines)


def learning_curve(results: pd.DataFrame, names: list[str]) -> Figure:
    """Draw the accuracy on other people against the number of people in training."""
    rows = results[results["name"].isin(names)].sort_values("train_patients")
    mean = rows.groupby("name")[["train_patients", "distinct_accuracy"]].mean().sort_values("train_patients")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(mean["train_patients"], 100 * mean["distinct_accuracy"], color=COLOURS[TRAINING])
    axes.plot(rows["train_patients"], 100 * rows["distinct_accuracy"], "o", color=COLOURS[TRAINING], alpha=0.6)
    axes.set_xscale("log", base=2)
    ticks = mean["train_patients"].round().astype(int).tolist()
    axes.set_xticks(ticks, ticks)
    axes.set(xlabel="known patients in training", ylabel="distinct images of other people, % right")
    axes.grid(alpha=0.3)
    return figure


def read_variants(content: dict) -> dict[tuple[str, int], tuple[Params, float, int | None]]:
    """Return the params of each variant and seed, the share of people that it trains on, and the cut `three_ways`.

    Raises
    ------
    UserError
        If a variant names no param, gives one what it does not take, or has both three_ways and share.
    """
    runs = {}
    name = "base"
    try:
        base = with_overrides(load_params(PROJECT / "params.yaml").model_dump(), content["base"]).model_dump()
        for name, variant in content["variants"].items():
            overrides = dict(variant or {})
            share, cut = overrides.pop("share", 1.0), overrides.pop("three_ways", None)
            if cut is not None and type(cut) is not int:
                raise ValueError(f"three_ways: {cut!r} is no whole number, the seed of the cuts")
            for seed in content["seeds"]:
                runs[name, seed] = with_overrides(base, overrides | {"train.seed": seed}), share, cut
            if cut is not None and share != 1:
                raise ValueError("has both three_ways and share")
    except KeyError as error:
        raise UserError(f"{VARIANTS}: lacks {error.args[0]}") from None
    except ValueError as error:  # pydantic's are such, too
        raise UserError(f"{VARIANTS}: {name}: {' '.join(str(error).split())}") from None
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.tuning", description="Compare settings on validation")
    parser.add_argument("names", nargs="*", help="variants of tuning.yaml; all where none is given")
    parser.add_argument("--predictions", type=Path, help="folder for each variant's validation predictions")
    arguments = parser.parse_args()
    content = read_settings(VARIANTS)
    runs = read_variants(content)
    unknown = set(arguments.names) - set(content["variants"])
    if unknown:
        sys.exit(f"error: {VARIANTS} has no variant {', '.join(sorted(unknown))}")
    for name in content["variants"]:
        if arguments.names and name not in arguments.names:
            continue
        for seed in content["seeds"]:
            done = read_table(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=["name", "seed"])
            if ((done["name"] == name) & (done["seed"] == seed)).any():
                continue
            found, predictions = run_variant(name, *runs[name, seed])
            pd.DataFrame(found).to_csv(RESULTS, mode="a", header=not RESULTS.exists(), index=False)
            if arguments.predictions:
                arguments.predictions.mkdir(parents=True, exist_ok=True)
                predictions.to_csv(arguments.predictions / f"{name}-{seed}.csv", index=False)
            print(*found, sep="\n", flush=True)
    results = pd.read_csv(RESULTS)
    three = results["protocol"].isin(THREE)
    tables = {protocol: summary(rows) for protocol, rows in results[~three].groupby("protocol")}
    fill_file(PAGE, tables | {"three-ways": summary_three_ways(results[three])})
    save(learning_curve(results, content["learning_curve"]), CURVE)


if __name__ == "__main__":
    run_script(main)
