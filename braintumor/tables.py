"""What the stages agree on: the layout of data/raw, and the tables manifest, split and predictions."""

from pathlib import Path

import pandas as pd

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
    # A class or a patient may well be called NA or 007: only an empty patient or similarity is missing.
    missing = {"patient": [""], "similarity": [""]}
    return pd.read_csv(file, dtype={"patient": str, "class": str}, keep_default_na=False, na_values=missing)
