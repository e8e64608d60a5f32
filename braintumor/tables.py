"""What the tables have in common that the stages hand on: manifest, split and predictions."""

from pathlib import Path

import pandas as pd

FOLDERS = TRAINING, TESTING = "Training", "Testing"
SUBSETS = TRAIN, VALIDATION, TEST = "train", "validation", "test"
UNUSED = "unused"


def read_table(file: Path) -> pd.DataFrame:
    """Read a manifest, a split or a table of predictions; patients are text, missing where unknown."""
    # A class or a patient may well be called NA or 007: only an empty patient or similarity is missing.
    missing = {"patient": [""], "similarity": [""]}
    return pd.read_csv(file, dtype={"patient": str, "class": str}, keep_default_na=False, na_values=missing)
