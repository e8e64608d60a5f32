"""The stages of dvc.yaml, one module each: read params and inputs, call the library, write the outs."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from braintumor.errors import UserError


def run(stage: Callable[..., None]) -> None:
    """Call a stage with the paths of its command line; an error of the user's is one line on stderr.

    Every parameter of `stage` is a path, given as ``--name PATH``, so that dvc.yaml shows each one.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(stage)))
    for name in inspect.signature(stage).parameters:
        parser.add_argument(f"--{name}", type=Path, required=True)
    try:
        stage(**vars(parser.parse_args()))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def write_json(content: dict, file: Path) -> None:
    """Write metrics or a model's description."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(table: pd.DataFrame, file: Path) -> None:
    """Write a table without its index."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, lineterminator="\n")


def check_rows(array: np.ndarray, table: pd.DataFrame, images: Path, split: Path) -> None:
    """Make sure that row i of the image array is row i of the split."""
    if len(array) != len(table):
        raise UserError(f"{images} has {len(array)} images but {split} has {len(table)} rows: run dvc repro")
