"""Measure the times that the README promises and write them into its table.

Needs the real dataset in data/raw and a finished `dvc repro`; nothing else should run on the machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from braintumor.device import processor
from braintumor.pages import fill_file, table
from scripts import PROJECT, run_script

# A child's peak begins at its parent's size, so a small process stands between.
RUNNER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code != 0)
"""


def measure(command: str | list[str], folder: Path = PROJECT) -> tuple[float, float]:
    """Run a command, its words parted by spaces or in a list, in a folder.

    Returns
    -------
    seconds, memory : float
        The latter the peak of its largest process, in GB.
    """
    start = time.perf_counter()
    runner = [sys.executable, "-c", RUNNER, *(command.split() if isinstance(command, str) else command)]
    done = subprocess.run(runner, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {command} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return seconds, int(done.stdout) * unit / 1e9


def main() -> None:
    status = subprocess.run(["dvc", "status", "--json"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if status.stdout.strip() != "{}":
        sys.exit("error: the pipeline is not up to date: run make repro first")
    with tempfile.TemporaryDirectory() as folder:
        audit = measure(
            f"python -m stages.audit --raw data/raw --manifest {folder}/manifest.csv --quarantine {folder}/q.csv "
            f"--metrics {folder}/data.json --classes {folder}/classes.csv --sizes {folder}/sizes.csv "
            f"--overview {folder}/data.png --pictures {folder}/audit"
        )
        preprocess = measure(
            f"python -m stages.preprocess --raw data/raw --manifest {folder}/manifest.csv "
            f"--images {folder}/images.npy"
        )
        demo = measure(f"python -m scripts.demo --folder {folder}/demo")
    # The outs come out as they are: forced, single stages run again on what is there.
    after = measure("dvc repro --force --single-item calibrate evaluate explain export report")
    idle = sorted(measure("dvc repro") for _ in range(3))[1]
    both = audit[0] + preprocess[0], max(audit[1], preprocess[1])
    rows = [
        ("audit and preprocess of the 7,023 images", both, "25 s, 1.5 GB"),
        ("`make demo` after installation", demo, "90 s"),
        ("from `calibrate` to `report`, the 1,404 test images", after, "180 s"),
        ("`dvc repro` with nothing to do", idle, "2 s"),
    ]
    lines = [[what, f"{seconds:.1f} s", f"{memory:.2f} GB", target] for what, (seconds, memory), target in rows]
    text = table(["what", "time", "peak memory", "target"], lines)
    text += f"\n\n{date.today()}, {os.cpu_count()} cores of {processor()}."
    print(text)
    fill_file(PROJECT / "README.md", {"bench": text})


if __name__ == "__main__":
    run_script(main)
