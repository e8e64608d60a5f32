import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from scripts.demo import MEASURED
from scripts.study_demo import OVERRIDES

PROJECT = Path(__file__).parent.parent
# Two tests run at a time, each with torch's threads on every core: these would mostly wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
TINY = OVERRIDES | {
    "explain": {
        "samples": 2,
        "boxes": "data/raw/masks",
        "shuffles": 1,
        "shuffled_images": 16,
        "resamples": 100,
        "device": "cpu",
        "threads": 1,
    },
    "export": {"phantom_patients": 8, "threads": 1},
}


def pytest_collection_modifyitems(items):
    # The worker that makes the finished project begins with it; the other one has enough else to do meanwhile.
    items.sort(key=lambda item: "finished" not in item.fixturenames)


@contextmanager
def full_disk(left):
    """Let no file of this process become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Checkout:
    """A git checkout of the project, and what its commands say."""

    def __init__(self, folder):
        self.folder = folder
        name = {"NAME": "Test", "EMAIL": "test@example.org"}
        people = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in name.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | people | {"PATH": path, "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}

    def run(self, command, code=0):
        """Run a shell command in the checkout; return what it prints on stdout and stderr."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, f"{command}: exit code {done.returncode}: {output}"
        return output

    def train_with(self, patch, launcher="python"):
        """Return the command of the stage train after some lines of Python that change `stage`, its module."""
        script = f"import stages, stages.train as stage\n{patch}stages.run(stage.main)\n"
        (self.folder / "patched.py").write_text(script)
        command = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["train"]["cmd"]
        return command.replace("${train.launcher} -m stages.train", f"{launcher} patched.py")

    def train_until(self, step, number, launcher="python", everyone=True):
        """Return the command of the stage train that gets a signal in a step of its own, counted from 1.

        Where several processes train, all of them get it or, without `everyone`, the second one alone.
        """
        patch = (
            "import os, braintumor.training as training\n"
            "step, steps = training.train_step, []\n"
            "def interrupted(*arguments):\n"
            "    steps.append(1)\n"
            f"    if len(steps) == {step} and ({everyone} or os.environ['RANK'] == '1'):\n"
            f"        os.kill(os.getpid(), {int(number)})\n"
            "    return step(*arguments)\n"
            "training.train_step = interrupted\n"
        )
        return self.train_with(patch, launcher)

    def stages_run_by(self, command):
        return re.findall(r"Running stage '(\w+)'", self.run(command))

    def link_venv(self):
        """Give the checkout the environment that make has made, newer than its lock."""
        (self.folder / ".venv").symlink_to(PROJECT / ".venv")
        os.utime(self.folder / "requirements.lock", (0, 0))

    def params(self, changes):
        """Change some params in params.yaml: section -> name -> value."""
        file = self.folder / "params.yaml"
        content = yaml.safe_load(file.read_text())
        for section, values in changes.items():
            content[section] |= values
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def clone(self, folder):
        """Clone what is committed; DVC's cache is that of this checkout, so nothing is computed twice."""
        subprocess.run(["git", "clone", "--quiet", self.folder, folder], check=True)
        other = Checkout(folder)
        # What `dvc cache dir --local` writes, in no time.
        (folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {self.folder / '.dvc/cache'}\n")
        return other


def finish_pipeline(folder):
    """Copy the project, run its pipeline once on a tiny phantom set and commit it; return what it said."""
    checkout = Checkout(folder)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split():
        made = name.startswith(("metrics/", "plots/")) and Path(name).name not in MEASURED
        real_run = name == "dvc.lock" or made
        if not real_run and (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    checkout.params(TINY)
    checkout.run("git init --quiet && git add --all && git commit --quiet --message start")
    output = checkout.run("dvc repro")
    checkout.run("git add --all && git commit --quiet --message run")
    return output


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The project on a tiny phantom set, its pipeline run once and committed; tests work on clones of it."""
    # Once for all of xdist's workers: it takes the better part of a minute.
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    said = root / "pipeline" / "said.txt"
    with FileLock(root / "pipeline.lock"):
        if not said.exists():
            shutil.rmtree(said.parent, ignore_errors=True)
            output = finish_pipeline(said.parent / "project")
            said.write_text(output)
    checkout = Checkout(said.parent / "project")
    checkout.first_output = said.read_text()
    return checkout


@pytest.fixture
def checkout(finished, tmp_path):
    """A clone of the finished project with its outs in place."""
    clone = finished.clone(tmp_path / "clone")
    clone.run("dvc checkout --quiet")
    return clone
