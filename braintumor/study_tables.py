"""What the study's table comes to: the ladder of protocols, its picture, the tables of docs/study.md."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from braintumor.pages import fill
from braintumor.pages import table as markdown
from braintumor.plots import PALETTE, save
from braintumor.results import interval_text, mean_interval

# From the number that everybody reports to the one that holds for a new person.
RUNGS = {
    ("seed", "patient"): "seed",
    ("official", "patient"): "official",
    ("copy_free", "patient"): "copy_free",
    ("grouped", "copy"): "grouped by copy",
    ("grouped", "patient"): "grouped by patient",
}
# What a rung is measured on, and the baselines that see no anatomy.
FIGURES = {
    "accuracy": "all test images",
    "accuracy_distinct": "distinct",
    "accuracy_copied": "copied",
    "accuracy_copy_free": "without a copy",
    "accuracy_patient_free": "of nobody seen",
}


def ladder(table: pd.DataFrame) -> pd.DataFrame:
    """Average the parts ``ladder`` and ``pretrained`` of the study's table over their repetitions.

    Parameters
    ----------
    table : DataFrame
        As metrics/study.csv.

    Returns
    -------
    DataFrame with columns rung, recipe, measured_on, repeats, mean, low, high
        One row for each rung, recipe and figure that the table has. The recipe is what an entry is called
        between ``ladder-`` and its last word; baselines have their own name. `measured_on` is one of `FIGURES`,
        or such as ``sensitivity glioma``. For low and high see `figure_of`.
    """
    rows = table[table["part"].isin(["ladder", "pretrained"]) & (table["state"] == "success")]
    lines = []
    for (protocol, group_by), rung in RUNGS.items():
        own = rows[(rows["protocol"] == protocol) & (rows["group_by"] == group_by)]
        for entry, repeats in own.groupby("entry", sort=False):
            recipe = entry.removeprefix("ladder-").rsplit("-", 1)[0]
            classes = repeats.filter(regex=r"^sensitivity_(?!.*_(low|high)$)")
            columns = FIGURES | {column: column.replace("_", " ", 1) for column in classes}
            lines += [
                {"rung": rung, "recipe": recipe, "measured_on": name} | figure_of(repeats, column)
                for column, name in columns.items()
                if column in repeats
            ]
        for column in own.filter(regex=r"^baseline_accuracy(?!_network)(?!.*_(low|high)$)"):
            once = own.drop_duplicates("fold")  # they have no network, and so no seed of it
            name = f"baseline {column.removeprefix('baseline_accuracy').strip('_')}"
            lines.append(
                {"rung": rung, "recipe": name, "measured_on": FIGURES["accuracy"]} | figure_of(once, column)
            )
    columns = ["rung", "recipe", "measured_on", "repeats", "mean", "low", "high"]
    rungs = pd.DataFrame([line for line in lines if line["repeats"]], columns=columns)
    return rungs.round({"mean": 6, "low": 6, "high": 6})


def figure_of(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Average one figure of an experiment's repetitions.

    Returns
    -------
    dict
        repeats, mean, and the bounds low and high of a 95% interval, missing where there is none. A single run has
        its own: Wilson's, or that over groups (``accuracy_groups_low``) where the table has it and it is wider. So
        have seeds, which share their test images: theirs reaches at least as far as the average run's own does,
        since another training is not all that may turn out otherwise.
    """
    rows = rows[rows[column].notna()]
    mean, low, high = mean_interval(rows[column])
    if rows["fold"].nunique() == 1:
        for name in (column, f"{column}_groups"):
            if f"{name}_low" in rows:
                low, high = np.fmin(low, rows[f"{name}_low"].mean()), np.fmax(high, rows[f"{name}_high"].mean())
    return {"repeats": len(rows), "mean": mean, "low": low, "high": high}


def ladder_figure(rungs: pd.DataFrame, file: Path) -> None:
    """Draw the accuracy on all test images down the ladder, a line for each recipe and each baseline but one."""
    names = [rung for rung in RUNGS.values() if rung in set(rungs["rung"])]
    # The largest class alone, at a third or less, would press the others together.
    shown = rungs[(rungs["measured_on"] == FIGURES["accuracy"]) & (rungs["recipe"] != "baseline majority")]
    # Recipes first: a rung that only some have run on would put others behind the baselines.
    shown = shown.sort_values("recipe", key=lambda recipe: recipe.str.startswith("baseline"), kind="stable")
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, (recipe, line) in enumerate(shown.groupby("recipe", sort=False)):
        line = line.set_index("rung").reindex(names)  # broken where a recipe has not run on a rung
        place = np.arange(len(names)) + 0.06 * number
        mean = 100 * line["mean"]
        lengths = [mean - 100 * line["low"].fillna(line["mean"]), 100 * line["high"].fillna(line["mean"]) - mean]
        style = ":" if recipe.startswith("baseline") else "-"
        colour = PALETTE[number % len(PALETTE)]
        axes.errorbar(place, mean, lengths, marker="o", linestyle=style, capsize=3, color=colour, label=recipe)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="test images, % right")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, file)


def summary(table: pd.DataFrame, part: str) -> str:
    """Return a part of the study as a table of Markdown, a line for each entry and value; empty if none ran."""
    rows = table[table["part"] == part]
    # A suggestion counts where it is taken.
    auto = rows["overrides"].str.contains('"train.lr": "auto"', regex=False)
    rows = rows.assign(suggested_lr=rows["suggested_lr"].where(auto))
    figures = {"validation_accuracy": "validation"} | FIGURES
    figures = {column: name for column, name in figures.items() if column in rows and rows[column].notna().any()}
    # Where all test images are new, these parts of them are all.
    for column in ("accuracy_copy_free", "accuracy_patient_free"):
        if column in figures and rows[column].equals(rows["accuracy"]):
            del figures[column]
    notes = {"cut": "cut", "seed_found": "the seed found", "suggested_lr": "suggested rate"}
    notes = {column: name for column, name in notes.items() if rows[column].replace("", np.nan).any()}
    header = ["experiment", "runs", "size", "epochs", *notes.values(), *figures.values()]
    lines = []
    for name, runs in rows.groupby(rows["entry"].where(rows["repeated"], rows["name"]), sort=False):
        finished, first = runs[runs["state"] == "success"], runs.iloc[0]
        count = f"{len(finished)}" + (f", {len(runs) - len(finished)} failed" if len(runs) > len(finished) else "")
        said = ["" if pd.isna(first[column]) else str(first[column]) for column in ("size", "epochs", *notes)]
        cells = (figure_of(finished, column) for column in figures)
        shares = (interval_text(cell["mean"], cell["low"], cell["high"]) for cell in cells)
        lines.append([name, count, *said, *shares])
    return markdown(header, lines) if lines else ""


def class_table(table: pd.DataFrame) -> str:
    """Return the ladder's sensitivities as a table of Markdown, a line for each recipe and rung."""
    rungs = ladder(table)
    rungs = rungs[rungs["measured_on"].str.startswith("sensitivity ")]
    classes = list(dict.fromkeys(rungs["measured_on"]))
    lines = [
        [recipe, rung, *(interval_text(*own.loc[name, ["mean", "low", "high"]]) for name in classes)]
        for (recipe, rung), own in rungs.set_index("measured_on").groupby(["recipe", "rung"], sort=False)
    ]
    names = [name.removeprefix("sensitivity ") for name in classes]
    return markdown(["recipe", "rung", *names], lines) if lines else ""


def fill_page(page: str, table: pd.DataFrame, parts: Iterable[str]) -> str:
    """Put each part's table between its marks, such as ``<!-- ladder -->`` and ``<!-- /ladder -->``."""
    for part in parts:
        page = fill(page, part, summary(table, part))
    return fill(page, "ladder-classes", class_table(table))
