"""What the stages agree on: the layout of data/raw, and the tables manifest, split and predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from braintumor.errors import UserError
from braintumor.files import replacing_file

FOLDERS = TRAINING, TESTING = "Training", "Testing"
SUBSETS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNUSED = "unused"


def list_images(raw: Path) -> list[str]:
    """List the files of ``Training/<class>/`` and ``Testing/<class>/``, by name, relative to `raw`."""
    return sorted(
        path.relative_to(raw).as_posix()
        for folder in FOLDERS
        for path in (raw / folder).glob("*/*")
        if path.is_file()
    )


def read_table(file: Path) -> pd.DataFrame:
    """Read a manifest, a split or a table of predictions; patients are text, missing where unknown."""
    # A class, a mode or a patient may well be called NA, 1 or 007: only an empty patient or similarity is missing.
    text = dict.fromkeys(("path", "folder", "class", "mode", "format", "nearest", "patient", "prediction"), str)
    missing = {"patient": [""], "similarity": [""]}
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values=missing)


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a table as csv, without its index."""
    with replacing_file(file) as beside:
        table.to_csv(beside, index=False, lineterminator="\n")


def write_metrics(metrics: dict[str, float | int], file: Path) -> None:
    """Write flat metrics as json."""
    with replacing_file(file) as beside:
        beside.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_images(file: Path, table: pd.DataFrame) -> np.ndarray:
    """Map the image array into memory, after a check that row i of it is row i of the table.

    Returns
    -------
    ndarray of shape (n, size, size), uint8
    """
    images = np.load(file, mmap_mode="r")
    if len(images) != len(table):
        raise UserError(f"{file} has {len(images)} images but the split has {len(table)}: run dvc repro")
    return images
