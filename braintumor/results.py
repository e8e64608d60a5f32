"""What a run has found, as the report takes it, and how its figures are written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ABSENT = "\u2013"
# Columns of tables of scores that are text, where nothing is missing.
TEXT = (
    *("part", "entry", "name", "state", "reason", "cut", "model", "protocol", "group_by", "recipe", "commit"),
    *("device", "seed_found", "overrides", "class", "value"),
)


def read_scores(file: Path) -> pd.DataFrame:
    """Read a table of scores: an empty score is missing; a class may be called NA, a commit 12e45678."""
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


@dataclass(frozen=True)
class Results:
    """All that the report is made of, as the stages before it wrote it.

    Attributes
    ----------
    manifest, quarantine, split : DataFrame
    images : ndarray of shape (n, size, size), uint8
        Row i belongs to row i of `manifest` and `split`.
    predictions, missed : DataFrame
    saliency : ndarray of shape (m, size, size), uint8
        Row i belongs to row i of `explained`.
    explained : DataFrame
    tables : dict of DataFrame
        curves, lr_range, subsets, class_scores, subgroups, baselines, reliability, risk_coverage, roc, pr.
    metrics : dict of dict
        data, train, test, calibration, baselines, explain, export.
    sheets : list of (name, bytes)
        PNG pictures of the stage explain.
    overview : bytes
        PNG picture of classes and sizes.
    description : dict
        models/model.json.
    seeds : DataFrame or None
        metrics/seeds.csv, where these are the images that it was measured on.
    latency : dict or None
        metrics/latency.json, where it was measured on this model.
    checksums : dict of str
        SHA-256 by file.
    commit : str
    command : str
        What repeats it.
    """

    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    split: pd.DataFrame
    images: np.ndarray
    predictions: pd.DataFrame
    missed: pd.DataFrame
    saliency: np.ndarray
    explained: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, float | int]]
    sheets: list[tuple[str, bytes]]
    overview: bytes
    description: dict
    seeds: pd.DataFrame | None
    latency: dict | None
    checksums: dict[str, str]
    commit: str
    command: str

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.description["classes"])


def percent(value: float) -> str:
    """Write a share as a percentage with one decimal, and never as all or none where it is not."""
    text = f"{100 * value:.1f}%"
    if text == "100.0%":
        return "100%" if value == 1 else "> 99.9%"
    return "< 0.1%" if text == "0.0%" and value > 0 else text


def with_interval(scores: dict[str, float | int], name: str) -> str:
    """Write a share with its 95% interval, such as ``95.6% [94.4, 96.5]``."""
    return interval_text(*(scores.get(f"{name}{end}") for end in ("", "_low", "_high")))


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """Write a share and the bounds of its interval, all 0 to 1; a dash where there is none."""
    if value is None or np.isnan(value):
        return ABSENT
    if np.isnan(low):
        return percent(value)
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def number_with_interval(scores: dict[str, float | int], name: str) -> str:
    """Write a number with its interval where it has one, such as ``0.077 [0.063, 0.098]``."""
    if scores.get(name) is None:
        return ABSENT
    text = f"{scores[name]:.3f}"
    if f"{name}_low" in scores:
        text += f" [{scores[f'{name}_low']:.3f}, {scores[f'{name}_high']:.3f}]"
    return text
