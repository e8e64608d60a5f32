"""What the study's table comes to: the ladder of protocols, its picture, the tables of docs/study.md."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from braintumor.pages import fill
from braintumor.plots import PALETTE, save

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
# Columns of text, where nothing is missing.
TEXT = (
    *("part", "entry", "name", "state", "reason", "cut", "model", "protocol", "group_by", "recipe", "commit"),
    "device",
)


def read_rows(file: Path) -> pd.DataFrame:
    """Read a table of experiments, one a row: an empty score is missing, the commit 12e45678 no number."""
    table = pd.read_csv(file, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    return table.fillna({name: "" for name in TEXT if name in table})


def mean_interval(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean of repetitions and its 95% interval by Student's t, missing where there is but one.

    The interval ends at 0 and 1. Folds share most of their training images, so theirs is somewhat too narrow.
    """
    values = values.dropna()
    if len(values) < 2:
        return (float(values.mean()) if len(values) else np.nan), np.nan, np.nan
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return float(mean), float(max(0, mean - half)), float(min(1, mean + half))


def ladder(table: pd.DataFrame) -> pd.DataFrame:
    """Average the parts ``ladder`` and ``pretrained`` of the study's table over their repetitions.

    Parameters
    ----------
    table : DataFrame
        As metrics/study.csv.

    Returns
    -------
    DataFrame with columns rung, model, measured_on, repeats, mean, low, high
        One row for each rung, network and figure that the table has; baselines have their own name as the model.
        With a single repetition low and high are its own interval.
    """
    rows = table[table["part"].isin(["ladder", "pretrained"]) & (table["state"] == "success")]
    lines = []
    for (protocol, group_by), rung in RUNGS.items():
        own = rows[(rows["protocol"] == protocol) & (rows["group_by"] == group_by)]
        for model, repeats in own.groupby("model", sort=False):
            lines += [
                {"rung": rung, "model": model, "measured_on": name} | _figure(repeats, column)
                for column, name in FIGURES.items()
                if column in repeats
            ]
        for column in own.filter(regex=r"^baseline_accuracy(?!_network)(?!.*_(low|high)$)"):
            # They see no network: one row of each fold or seed is enough.
            once = own.drop_duplicates(["fold", "seed"])
            name = f"baseline {column.removeprefix('baseline_accuracy').strip('_')}"
            lines.append({"rung": rung, "model": name, "measured_on": FIGURES["accuracy"]} | _figure(once, column))
    columns = ["rung", "model", "measured_on", "repeats", "mean", "low", "high"]
    return pd.DataFrame([line for line in lines if line["repeats"]], columns=columns)


def _figure(rows: pd.DataFrame, column: str) -> dict[str, float]:
    repeats = int(rows[column].notna().sum())
    mean, low, high = mean_interval(rows[column])
    if repeats == 1 and f"{column}_low" in rows:
        only = rows[rows[column].notna()].iloc[0]
        low, high = only[f"{column}_low"], only[f"{column}_high"]
    return {"repeats": repeats, "mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4)}


def ladder_figure(rungs: pd.DataFrame, file: Path) -> None:
    """Draw the accuracy on all test images down the ladder, a line for each network and baseline."""
    names = [rung for rung in RUNGS.values() if rung in set(rungs["rung"])]
    shown = rungs[rungs["measured_on"] == FIGURES["accuracy"]]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, (model, line) in enumerate(shown.groupby("model", sort=False)):
        place = line["rung"].map(names.index) + 0.06 * number
        mean = 100 * line["mean"]
        lengths = [mean - 100 * line["low"].fillna(line["mean"]), 100 * line["high"].fillna(line["mean"]) - mean]
        style = ":" if model.startswith("baseline") else "-"
        colour = PALETTE[number % len(PALETTE)]
        axes.errorbar(place, mean, lengths, marker="o", linestyle=style, capsize=3, color=colour, label=model)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="test images, % right")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, file)


def summary(table: pd.DataFrame, part: str) -> str:
    """Return one part of the study as a table of Markdown, a line for each entry and value."""
    rows = table[table["part"] == part]
    columns = {"validation_accuracy": "validation"} | FIGURES
    columns = {column: name for column, name in columns.items() if column in rows and rows[column].notna().any()}
    lines = [
        f"| experiment | runs | size | epochs | cut | {' | '.join(columns.values())} |",
        f"|{'---|' * (5 + len(columns))}",
    ]
    for name, runs in rows.groupby(_line_name(rows), sort=False):
        finished = runs[runs["state"] == "success"]
        cells = []
        for column in columns:
            mean, low, high = mean_interval(finished[column])
            spread = "" if np.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append("" if np.isnan(mean) else f"{100 * mean:.1f}%{spread}")
        first = runs.iloc[0]
        count = f"{len(finished)}" + (f", {len(runs) - len(finished)} failed" if len(runs) > len(finished) else "")
        described = f"{name} | {count} | {first['size']} | {first['epochs']} | {first['cut']}"
        lines.append(f"| {described} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _line_name(rows: pd.DataFrame) -> pd.Series:
    """Seeds and folds of an entry share a line; values that are compared have one each."""
    repeated = rows["name"].str.contains(r"-(?:seed|fold)-\d+$")
    return rows["entry"].where(repeated, rows["name"])


def fill_page(page: str, table: pd.DataFrame) -> str:
    """Put each part's table between its marks, such as ``<!-- ladder -->`` and ``<!-- /ladder -->``."""
    for part in table["part"].unique():
        page = fill(page, part, summary(table, part))
    return page
