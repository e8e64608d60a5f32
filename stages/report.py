"""Put all that the other stages found on one page, and write the model card."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from braintumor.files import replacing_file
from braintumor.params import Params, load_params
from braintumor.report import Results, render_report
from braintumor.tables import read_images, read_table
from stages import run

TABLES = (
    "curves", "lr_range", "subsets", "class_scores", "subgroups", "baselines", "reliability", "risk_coverage",
    "roc", "pr",
)  # fmt: skip
METRICS = "data", "train", "test", "calibration", "baselines", "explain", "export"


def main(
    manifest: Path,
    quarantine: Path,
    split: Path,
    images: Path,
    overview: Path,
    weights: Path,
    description: Path,
    onnx: Path,
    calibration: Path,
    novelty: Path,
    predictions: Path,
    missed: Path,
    saliency: Path,
    explained: Path,
    pictures: Path,
    metrics: Path,
    plots: Path,
    seeds: Path,
    report: Path,
    card: Path,
) -> None:
    params = load_params(Path("params.yaml"))
    table = read_table(split)
    results = Results(
        manifest=read_table(manifest),
        quarantine=pd.read_csv(quarantine, dtype=str, keep_default_na=False),
        split=table,
        images=read_images(images, table),
        predictions=read_table(predictions),
        missed=read_table(missed),
        saliency=np.load(saliency),
        explained=read_table(explained),
        tables={name: read_scores(plots / f"{name}.csv") for name in TABLES},
        metrics={name: json.loads((metrics / f"{name}.json").read_text(encoding="utf-8")) for name in METRICS},
        sheets=[(file.stem, file.read_bytes()) for file in sorted(pictures.glob("*.png"))],
        overview=overview.read_bytes(),
        description=json.loads(description.read_text(encoding="utf-8")),
        seeds=same_recipe(pd.read_csv(seeds), params) if seeds.exists() else None,
        checksums={
            file.as_posix(): checksum(file)
            for file in (manifest, split, images, weights, description, calibration, novelty, onnx)
        },
        commit=git("rev-parse", "HEAD"),
        command=repeating(params),
    )
    for content, file in zip(render_report(results, params), (report, card), strict=True):
        with replacing_file(file) as beside:
            beside.write_text(content, encoding="utf-8")
    print(f"{report} of {report.stat().st_size / 1e6:.1f} MB: open it in a browser")


def read_scores(file: Path) -> pd.DataFrame:
    """Read a table of scores; only an empty cell is missing, a class may be called NA."""
    text = dict.fromkeys(("class", "value"), str)
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values=[""])


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git(*words: str) -> str:
    """Return what git says, nothing where it fails or there is none."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def committed_params(commit: str) -> dict[str, dict]:
    """Return the params at a commit, none where there are none."""
    return yaml.safe_load(git("show", f"{commit}:./params.yaml")) or {}


def same_recipe(seeds: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Keep the rows whose commit trained on the same data in the same way, but for the seed."""

    def recipe(content: dict) -> list:
        train = {name: value for name, value in content.get("train", {}).items() if name != "seed"}
        return [*(content.get(section) for section in ("data", "audit", "preprocess")), train]

    now = recipe(params.model_dump())
    same = {commit: recipe(committed_params(str(commit))) == now for commit in seeds["commit"].unique()}
    return seeds[seeds["commit"].map(same).astype(bool)]


def repeating(params: Params) -> str:
    """Return the commands that repeat this run."""
    if git("rev-parse", "--show-prefix"):  # a folder inside the project: the demo
        return "make demo"
    before, now = committed_params("HEAD"), params.model_dump()
    changes = [
        f"-S {shlex.quote(f'{section}.{name}={json.dumps(value)}')}"
        for section, values in now.items()
        for name, value in values.items()
        if before.get(section, {}).get(name) != value
    ]
    first = [f"git checkout {git('rev-parse', 'HEAD')}"] if git("rev-parse", "HEAD") else []
    if git("status", "--porcelain", "--", "braintumor", "stages", "dvc.yaml"):
        first.append("# and changes of the code that are not committed")
    return "\n".join([*first, f"dvc exp run {' '.join(changes)}" if changes else "make repro"])


if __name__ == "__main__":
    run(main)
