"""Run the pipeline of dvc.yaml on made-up images, in demo/, and leave the checkout as it is.

Everything but params.yaml is the project's own; a second run does only what has changed since the first.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from scripts import PROJECT

DVC = [sys.executable, "-m", "dvc"]  # of the environment that runs this, whatever PATH says
MEASURED = "seeds.csv", "latency.json"  # beside the pipeline, dependencies of the report
# Small enough for two minutes on two cores.
OVERRIDES = {
    "data": {"source": "phantom"},
    "audit": {"patients": "data/raw/patients.csv"},
    "preprocess": {"size": 96, "crop": False, "fit": "stretch"},
    "split": {"protocol": "grouped", "group_by": "patient", "folds": 5, "fold": 0},
    "train": {
        # Few patients, few pictures: a smaller network that sees more changes of each.
        "channels": [16, 32, 64, 128],
        "dropout": 0.2,
        "balance": 0.5,
        "shift": 0.1,
        "rotation": 10,
        "scale": 0.0,
        "brightness": 0.2,
        "epochs": 60,
        "batch_size": 32,
        "device": "cpu",
        "precision": "float32",
    },
    "evaluate": {"device": "cpu"},
    "explain": {"boxes": "data/raw/masks", "device": "cpu"},
    "export": {"phantom_patients": 8},
}


def prepare(folder: Path, overrides: dict[str, dict]) -> None:
    """Make a copy of the project in a folder of its own, with some params changed and a DVC without git."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("braintumor", "stages"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "dvc.yaml", folder)
    params = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in overrides.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    if not (folder / ".dvc" / "config").exists():  # it is written last, should this be killed
        subprocess.run([*DVC, "init", "--quiet", "--no-scm", "--force"], cwd=folder, check=True)
        shutil.copy(PROJECT / ".dvc" / "config", folder / ".dvc" / "config")
        subprocess.run([*DVC, "config", "core.no_scm", "true"], cwd=folder, check=True)
    shutil.copytree(PROJECT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)
    (folder / "metrics").mkdir(exist_ok=True)
    for name in MEASURED:
        shutil.copy(PROJECT / "metrics" / name, folder / "metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PROJECT / "demo")
    folder = parser.parse_args().folder
    prepare(folder, OVERRIDES)
    if code := subprocess.run([*DVC, "repro"], cwd=folder, check=False).returncode:
        sys.exit(code)
    data, test = (json.loads((folder / "metrics" / f"{name}.json").read_text()) for name in ("data", "test"))
    copied = f"{data['copied_testing_images']} of {data['testing_images']}"
    right, low, high = (100 * test[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    print(
        f"""
Found in {data["images"]} made-up images of {data["patients"]} known patients:
  {data["distinct_images"]} distinct pictures; {copied} images in Testing are copies of one in Training
  {data["patients_in_both"]} of the {data["patients_in_testing"]} patients in Testing are in Training as well
  pictures filed under two classes: {data["contradictory_copy_groups"]}
Then both folders were pooled and cut anew, so that no known patient and no copy is on both sides.
Tested on the {test["images"]} images of the new test set:
  {right:.1f}% right, 95% interval {low:.1f} to {high:.1f}
Open the report in a browser:
  {folder / "report/index.html"}
or these pictures:
  {folder / "plots/confusion.png"}  what was taken for what
  {folder / "plots/evaluation.png"}  accuracy on subsets, baselines without anatomy, calibration
  {folder / "plots/audit/copies.png"}  the copies side by side
  {folder / "plots/data.png"}  classes and sizes
  {folder / "plots/audit"}  a folder: samples of each class, contradictory labels
These are drawings, not patients: the numbers show that the pipeline works, nothing more."""
    )


if __name__ == "__main__":
    main()
