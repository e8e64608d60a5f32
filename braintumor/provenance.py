"""Where a run comes from: git's commits, the params of one, and the commands that repeat what lies here."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path

import pandas as pd
import yaml

from braintumor.params import Params, with_later


def git(*words: str) -> str:
    """Return what a git command prints.

    Raises
    ------
    CalledProcessError, OSError
        If it fails, or if there is no git.
    """
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def said(*words: str) -> str:
    """Return what a git command prints, nothing where it fails, such as outside of a repository."""
    try:
        return git(*words).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def committed_params(commit: str) -> dict[str, dict]:
    """Return the content of params.yaml at a commit, nothing where there is none."""
    return yaml.safe_load(said("show", f"{commit}:./params.yaml")) or {}


def same_recipe(seeds: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Keep the rows of metrics/seeds.csv whose commit cut the same data and trained as now, but for the seed.

    Parameters
    ----------
    seeds : DataFrame with column commit
    params : Params
    """

    def recipe(content: dict) -> list:
        # What a row of the table says itself.
        own = {"train": {"seed"}, "split": {"protocol", "group_by", "fold"}}
        return [
            {name: value for name, value in content.get(section, {}).items() if name not in own.get(section, ())}
            for section in ("data", "audit", "preprocess", "split", "train")
        ]

    now = recipe(params.model_dump())
    same = {
        commit: recipe(with_later(committed_params(str(commit)))) == now for commit in seeds["commit"].unique()
    }
    return seeds[seeds["commit"].map(same).astype(bool)]


def repeating(params: Params) -> str:
    """Return the commands that repeat a run with some params, in a clone of the repository."""
    if said("rev-parse", "--show-prefix"):  # a folder inside the project: the demo
        return "make demo"
    before, now = committed_params("HEAD"), params.model_dump()
    changes = [
        f"-S {shlex.quote(f'{section}.{name}={json.dumps(value)}')}"
        for section, values in now.items()
        for name, value in values.items()
        if before.get(section, {}).get(name) != value
    ]
    head = said("rev-parse", "HEAD")
    lines = [f"git checkout {head}"] if head else []
    if said("status", "--porcelain", "--", "braintumor", "stages", "dvc.yaml"):
        lines.append("# and changes of the code that are not committed")
    return "\n".join([*lines, f"dvc exp run {' '.join(changes)}" if changes else "make repro"])


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def measured_on(latency: Path, onnx: Path) -> dict | None:
    """Read the times that were measured on a model; None where there are none, or another model's."""
    measured = json.loads(latency.read_text(encoding="utf-8")) if latency.exists() else {}
    return measured if measured.get("onnx_sha256") == checksum(onnx) else None
