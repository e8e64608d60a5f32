"""Put all that the other stages found on one page, and write the model card."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from braintumor.files import replacing_file
from braintumor.params import load_params
from braintumor.provenance import checksum, measured_on, repeating, said, same_recipe
from braintumor.report import render_report
from braintumor.results import Results, read_scores
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
    latency: Path,
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
        seeds=same_recipe(read_scores(seeds), params) if seeds.exists() else None,
        latency=measured_on(latency, onnx),
        checksums={
            file.as_posix(): checksum(file)
            for file in (manifest, split, images, weights, description, calibration, novelty, onnx)
        },
        commit=said("rev-parse", "HEAD"),
        command=repeating(params),
    )
    for content, file in zip(render_report(results, params), (report, card), strict=True):
        with replacing_file(file) as beside:
            beside.write_text(content, encoding="utf-8")
    print(f"{report} of {report.stat().st_size / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    run(main)
