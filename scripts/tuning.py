"""Compare settings of the training on validation images, cut off as each protocol tests.

    python -m scripts.tuning [NAME ...]

Trains the variants of tuning.yaml that metrics/tuning.csv lacks, or the named ones among them, with each seed, one
after the other, and appends what they come to. What tests in the committed run is left out. Several of it may run
side by side on different names.
"""

import argparse
import json
import sys
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch.nn.functional as F  # noqa: N812, the usual name
from matplotlib.figure import Figure
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from braintumor import pages
from braintumor.batches import make_sets
from braintumor.device import choose_device, describe_environment, keep_freed_memory
from braintumor.epochs import make_training
from braintumor.errors import UserError
from braintumor.images import load_squares
from braintumor.models import Architecture, count_parameters
from braintumor.params import Params, Preprocess, load_params, pick, read_settings, with_overrides
from braintumor.plots import COLOURS, save
from braintumor.split import assign_subsets
from braintumor.tables import TEST, TRAIN, UNUSED, VALIDATION, read_images, read_table
from braintumor.training import Recipe, predict
from scripts import PROJECT, run, run_script
from stages import workers

VARIANTS = PROJECT / "tuning.yaml"
RESULTS = PROJECT / "metrics/tuning.csv"
CONFUSIONS = PROJECT / "metrics/tuning_confusions.csv"
PAGE = PROJECT / "docs/training.md"
CURVE = PROJECT / "docs/learning_curve.png"
OVERVIEW = PROJECT / "docs/tuning.png"
PARTS = {"patient": "by patient", "copy": "by copy", "random": "image by image"}  # of `three_ways`
SHADES = *COLOURS.values(), "#3a923a"  # of the parts


@dataclass(frozen=True)
class Result:
    """What one training of one variant came to on one part of the validation images.

    Attributes
    ----------
    changes : str
        What the variant changes in the base, as JSON.
    part : str
        See `three_ways`.
    distinct_accuracy : float
        Each copy group weighs one, as the share of its images that are right.
    distinct_loss : float
        Cross-entropy with the same weights.
    train_patients : int
        Known ones with an image in training.
    commit : str
        Of the code that trained.
    """

    name: str
    changes: str
    part: str
    seed: int
    distinct_accuracy: float
    distinct_loss: float
    accuracy: float
    train_accuracy: float
    train_patients: int
    train_images: int
    parameters: int
    epochs: int
    device: str
    commit: str


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
        `table` with other subsets, and a column ``part``: ``patient``, ``copy``, ``random``, or ``unused``.
    """
    left = table[table["subset"] != TEST]
    part = pd.Series(UNUSED, table.index)
    for name, folds, group in zip(PARTS, (4, 6, 8), ("group", "copy_group", None), strict=True):
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


def run_variant(
    name: str, changes: str, params: Params, cut: int, share: float, commit: str
) -> tuple[list[Result], pd.DataFrame]:
    """Train with some params and score the newest averaged weights on the three parts of the validation images.

    Parameters
    ----------
    name, changes : str
    params : Params
    cut : int
        See `three_ways`.
    share : float
        See `leave_out`.
    commit : str

    Returns
    -------
    results : list of Result
        One for each part.
    predictions : DataFrame
        Of each validation image; ``copied`` says whether it has a copy in training.
    """
    train, split = params.train, params.split
    device = choose_device(train.device, train.threads)
    table = read_table(PROJECT / "data/manifest.csv")
    array = make_images(table, params.preprocess)
    table["subset"] = assign_subsets(
        table, split.protocol, split.folds, split.fold, split.validation_folds, split.seed, split.source
    )
    table = leave_out(three_ways(table, cut), share, train.seed)
    sets = make_sets(table, array, train.batch_size, train.balance, train.distinct, device)
    architecture = Architecture.of(train, array.shape[1], len(sets.classes))
    training = make_training(train, architecture, pick(Recipe, train), sets, device)
    trained = table[table["subset"] == TRAIN]
    validated = table.iloc[sets.validation.rows].reset_index(drop=True)
    while not training.done:
        epoch = training.run_epoch()
        print(
            f"{name}, seed {train.seed}: epoch {epoch.number}/{train.epochs}, train {epoch.train.accuracy:.4f}, "
            f"validation {epoch.validation.accuracy:.4f}",
            flush=True,
        )
    logits = predict(training.averaged, training.validation, training.precision)
    labels = sets.validation.labels.cpu()
    right = (logits.argmax(1) == labels).numpy().astype(float)
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    predictions = validated[["path", "class", "copy_group", "patient", "group", "part"]].copy()
    predictions["prediction"] = [sets.classes[i] for i in logits.argmax(1)]
    predictions["copied"] = predictions["copy_group"].isin(trained["copy_group"])
    results = []
    for part, rows in validated.groupby("part", sort=False):
        weight = 1 / rows.groupby("copy_group")["path"].transform("size").to_numpy()
        results.append(
            Result(
                name=name,
                changes=changes,
                part=part,
                seed=train.seed,
                distinct_accuracy=round(float(np.average(right[rows.index], weights=weight)), 4),
                distinct_loss=round(float(np.average(losses[rows.index], weights=weight)), 4),
                accuracy=round(float(right[rows.index].mean()), 4),
                train_accuracy=round(epoch.train.accuracy, 4),
                train_patients=trained["patient"].nunique(),
                train_images=len(sets.train),
                parameters=count_parameters(training.model),
                epochs=train.epochs,
                device=str(describe_environment(device, training.precision)["device"]),
                commit=commit,
            )
        )
    return results, predictions


def confusions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each part by class, prediction and whether they have a copy in training.

    Returns
    -------
    DataFrame
        Columns ``part``, ``class``, ``prediction``, ``copied``, ``images`` and ``distinct``, where each copy group
        of a part counts as one.
    """
    weight = 1 / predictions.groupby(["part", "copy_group"])["path"].transform("size")
    grouped = predictions.assign(distinct=weight).groupby(["part", "class", "prediction", "copied"])
    counted = grouped.agg(images=("path", "size"), distinct=("distinct", "sum")).reset_index()
    return counted.assign(distinct=counted["distinct"].round(2))


def spread(values: pd.Series, digits: int, unit: str = "") -> str:
    """Return the mean of values and, from two on, their standard deviation."""
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{unit}{deviation}"


def summary(results: pd.DataFrame) -> str:
    """Return what the variants get in each part, in their order, with mean and deviation over their seeds."""
    lines = []
    for name, rows in results.groupby("name", sort=False):
        parts = [rows[rows["part"] == part] for part in PARTS]
        cells = [
            f"{spread(100 * part['distinct_accuracy'], 1, '%')} ({part['distinct_loss'].mean():.3f})"
            for part in parts
        ]
        known = f"{100 * rows['train_accuracy'].mean():.1f}%"
        parameters, epochs = rows[["parameters", "epochs"]].iloc[0]
        lines.append([name, str(len(parts[0])), *cells, known, f"{parameters:,}", str(epochs)])
    header = ["variant", "seeds", *PARTS.values(), "training images right", "parameters", "epochs"]
    return pages.table(header, lines)


def summary_of_errors(counted: pd.DataFrame, names: list[str]) -> str:
    """Return how many distinct images variants get wrong in each part, means over seeds, and what is called what.

    Parameters
    ----------
    counted : DataFrame
        See `confusions`, with the columns ``name`` and ``seed``.
    names : list of str
        The variants.
    """
    lines = []
    for (part, title), copied, name in product(PARTS.items(), (False, True), names):
        own = counted[counted["name"] == name]
        rows, seeds = own[(own["part"] == part) & (own["copied"] == copied)], own["seed"].nunique()
        if rows.empty:
            continue
        wrong = rows[rows["class"] != rows["prediction"]].groupby(["class", "prediction"])["distinct"].sum()
        wrong = wrong.sort_values(ascending=False, kind="stable") / seeds
        images = rows["distinct"].sum() / seeds
        share = f"{wrong.sum():.1f} ({100 * wrong.sum() / images:.1f}%)"
        how = "; ".join(f"{label} called {told} {n:.1f}" for (label, told), n in wrong.head(3).items())
        whether = f"{title}, {'with' if copied else 'without'} a copy in training"
        lines.append([whether, name, f"{images:.0f}", share, how])
    return pages.table(["part", "variant", "distinct images", "wrong", "most often"], lines)


def learning_curve(results: pd.DataFrame, names: list[str]) -> Figure:
    """Draw the accuracy in each part against the number of people in training."""
    found = results[results["name"].isin(names)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (part, title), colour in zip(PARTS.items(), SHADES, strict=True):
        rows = found[found["part"] == part]
        mean = rows.groupby("name")[["train_patients", "distinct_accuracy"]].mean().sort_values("train_patients")
        axes.plot(mean["train_patients"], 100 * mean["distinct_accuracy"], color=colour, label=title)
        axes.plot(rows["train_patients"], 100 * rows["distinct_accuracy"], "o", color=colour, alpha=0.6)
    axes.set_xscale("log", base=2)
    ticks = mean["train_patients"].round().astype(int).tolist()
    axes.set_xticks(ticks, ticks)
    axes.set(xlabel="known patients in training", ylabel="distinct validation images, % right")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def overview(results: pd.DataFrame, names: list[str]) -> Figure:
    """Draw what each seed of some variants gets in each part; the first variant's mean is a line through all."""
    figure = Figure(figsize=(10, 0.8 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(PARTS), sharey=True)
    for axes, (part, title), colour in zip(panels, PARTS.items(), SHADES, strict=True):
        rows = results[(results["part"] == part) & results["name"].isin(names)]
        places = rows["name"].map(names.index)
        axes.axvline(100 * rows["distinct_accuracy"][places == 0].mean(), color="0.6", linewidth=1)
        axes.plot(100 * rows["distinct_accuracy"], places, "o", color=colour, alpha=0.6)
        axes.set(title=title, xlabel="distinct images, % right")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure


def read_variants(content: dict) -> dict[tuple[str, int], tuple[Params, int, float]]:
    """Return the params of each variant and seed, the cut of `three_ways` and the share of people that train.

    Raises
    ------
    UserError
        If a variant names no param or gives one what it does not take, or the page shows what is no variant.
    """
    runs = {}
    name = "base"
    try:
        base = with_overrides(load_params(PROJECT / "params.yaml").model_dump(), content["base"]).model_dump()
        for name, variant in content["variants"].items():
            overrides = dict(variant or {})
            cut, share = overrides.pop("cut", 1), overrides.pop("share", 1.0)
            if type(cut) is not int:
                raise ValueError(f"cut: {cut!r} is no whole number, the seed of the cuts")
            if type(share) not in (int, float) or not 0 < share <= 1:
                raise ValueError(f"share: {share!r} is not over 0 and at most 1")
            for seed in content["seeds"]:
                runs[name, seed] = with_overrides(base, overrides | {"train.seed": seed}), cut, share
        for name in (*content["learning_curve"], *content["errors"]):
            if name not in content["variants"]:
                raise ValueError("no variant, but on the page")
    except KeyError as error:
        raise UserError(f"{VARIANTS}: lacks {error.args[0]}") from None
    except ValueError as error:  # pydantic's are such, too
        raise UserError(f"{VARIANTS}: {name}: {' '.join(str(error).split())}") from None
    return runs


def changes_of(content: dict) -> dict[str, str]:
    """Return what each variant changes, as the table has it."""
    return {name: json.dumps(variant or {}, sort_keys=True) for name, variant in content["variants"].items()}


def read_results(changes: dict[str, str]) -> pd.DataFrame:
    """Return the rows of what has been trained so far.

    Raises
    ------
    UserError
        If a row is of no variant, or of one that changes something else now.
    """
    columns = [field.name for field in fields(Result)]
    table = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=columns)
    if list(table.columns) != columns:
        raise UserError(f"{RESULTS}: its columns are not {', '.join(columns)}: delete it and {CONFUSIONS}")
    for name, own in table.groupby("name")["changes"].unique().items():
        if [changes.get(name)] != list(own):
            raise UserError(
                f"{RESULTS}: {name} is no variant of {VARIANTS}, or changes something else there: delete its "
                f"rows, and those in {CONFUSIONS}"
            )
    return table


def append(table: pd.DataFrame, file: Path) -> None:
    """Add rows to a table that other processes add to as well."""
    table.to_csv(file, mode="a", header=not file.exists(), index=False, lineterminator="\n")


def write_pages(content: dict) -> None:
    """Write the tables and plots of what has been trained, the variants in the order of tuning.yaml."""
    order = list(content["variants"])
    results = read_results(changes_of(content))
    # Two processes that trained the same, or one that was killed between two files, leave rows twice.
    results = results.drop_duplicates(["name", "seed", "part"])
    results = results.sort_values("name", key=lambda names: names.map(order.index), kind="stable")
    counted = pd.read_csv(CONFUSIONS).drop_duplicates(["name", "seed", "part", "class", "prediction", "copied"])
    errors = summary_of_errors(counted, content["errors"])
    pages.fill_file(PAGE, {"tuning": summary(results), "tuning-errors": errors})
    # The curve has a picture of its own, and another cut has other images.
    other_cuts = {name for name, variant in content["variants"].items() if "cut" in (variant or {})}
    apart = other_cuts.union(content["learning_curve"][:-1])
    save(overview(results, [name for name in results["name"].unique() if name not in apart]), OVERVIEW)
    save(learning_curve(results, content["learning_curve"]), CURVE)


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(prog="python -m scripts.tuning", description="Compare settings on validation")
    parser.add_argument("names", nargs="*", help="variants of tuning.yaml; all where none is given")
    parser.add_argument("--predictions", type=Path, help="folder for each variant's validation predictions")
    arguments = parser.parse_args()
    content = read_settings(VARIANTS)
    runs = read_variants(content)
    changes = changes_of(content)
    read_results(changes)
    if unknown := set(arguments.names) - set(changes):
        sys.exit(f"error: {VARIANTS} has no variant {', '.join(sorted(unknown))}")
    if run("git", "status", "--porcelain", "--", "braintumor", "stages", "scripts", "params.yaml", VARIANTS.name):
        sys.exit("error: commit the code and tuning.yaml first: each row of the table names its commit")
    commit = run("git", "rev-parse", "--short", "HEAD").strip()
    for name in content["variants"]:
        if arguments.names and name not in arguments.names:
            continue
        for seed in content["seeds"]:
            done = read_results(changes)
            if ((done["name"] == name) & (done["seed"] == seed)).any():
                continue
            found, predictions = run_variant(name, changes[name], *runs[name, seed], commit)
            counted = confusions(predictions)
            # A row is done once the results have it, so these come last.
            append(counted.assign(name=name, seed=seed)[["name", "seed", *counted.columns]], CONFUSIONS)
            append(pd.DataFrame(found), RESULTS)
            if arguments.predictions:
                arguments.predictions.mkdir(parents=True, exist_ok=True)
                predictions.to_csv(arguments.predictions / f"{name}-{seed}.csv", index=False)
            print(*found, sep="\n", flush=True)
    write_pages(content)


if __name__ == "__main__":
    run_script(main)
