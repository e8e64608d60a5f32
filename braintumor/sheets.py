"""Sheets of the images themselves: samples, copies, contradictions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from braintumor.copies import DECODED
from braintumor.images import read_image, resize_square
from braintumor.manifest import contradictory
from braintumor.plots import evenly, sheet


def audit_sheets(table: pd.DataFrame, raw: Path) -> Iterator[tuple[str, Figure]]:
    """Draw samples of each class, the largest copy groups, and the copies whose labels contradict each other.

    Parameters
    ----------
    table : DataFrame, the manifest
    raw : Path
        Folder that the manifest's paths are relative to.

    Yields
    ------
    name, figure
    """

    def show(row: pd.Series) -> tuple[np.ndarray, str]:
        image = resize_square(read_image(raw / row["path"], DECODED).grey, DECODED, letterbox=True)
        lines = (
            Path(row["path"]).name,
            f"{row['folder']}/{row['class']}",
            f"{row['width']} x {row['height']}, {row['mode']}",
        )
        return image, "\n".join(lines)

    def show_groups(groups: list[int], title: str) -> Figure:
        members = [table[table["copy_group"] == group] for group in groups]
        titles = [
            f"{len(m)} copies, {' and '.join(sorted(m['class'].unique()))}{', 8 of them' if len(m) > 8 else ''}"
            for m in members
        ]
        spread = [m.iloc[evenly(len(m), 8)] for m in members]
        return sheet([[show(row) for _, row in rows.iterrows()] for rows in spread], title, titles)

    for label, rows in table.groupby("class"):
        chosen = [show(row) for _, row in rows.iloc[evenly(len(rows), 24)].iterrows()]
        yield (
            f"samples_{label}",
            sheet([chosen[i : i + 8] for i in range(0, len(chosen), 8)], f"{label}: samples"),
        )
    sizes = table["copy_group"].value_counts().sort_index()
    sizes = sizes[sizes > 1].sort_values(ascending=False, kind="stable")
    if len(sizes):
        smallest = sizes.iloc[:8].min()
        larger, tied = sizes[sizes > smallest], sizes[sizes == smallest]
        chosen = [*larger.index, *tied.index[evenly(len(tied), 8 - len(larger))]]
        yield "copies", show_groups(chosen, "The largest groups of copies")
    if groups := contradictory(table, "copy_group"):
        yield "contradictions", show_groups(groups[:12], "Copies whose labels contradict each other")
