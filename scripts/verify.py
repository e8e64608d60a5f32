"""Run the pipeline again in a clean clone and say of each stage whether it gives what is committed.

    python -m scripts.verify                      the committed run, on the dataset itself
    python -m scripts.verify --base origin/main   this commit against another, on made-up images, as CI does

An out is compared by its hash; where the hashes of a stage that trains or tests differ, its metrics are by
tolerance, since another processor rounds differently.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from scripts import PROJECT, run_script
from scripts.demo import DVC, OVERRIDES

IDENTICAL, WITHIN, DIFFERENT = "identical", "within tolerance", "different"
TOLERANCE = 0.02  # of shares such as accuracies, absolute
# Stages without a training before them: reading, hashing and cutting round nowhere.
EXACT = ("download", "preprocess", "split")
# What a run is judged by, where it has them; else all shares are.
HEADLINES = ("accuracy", "accuracy_distinct", "balanced_accuracy", "f1", "auc", "validation_accuracy")
# Times, sizes and rates are 0 to 1 by chance. An interval's bounds move more than its middle, and so do the scores
# of made-up heads, which the network has never seen.
NOT_SHARES = re.compile(r"(^|_)(ms|seconds|latency|bytes|lr|loss|epoch|temperature)($|_)|_(low|high|phantoms)$")
FACTOR = 2  # of the suggested learning rate, which is the steepest place of a noisy curve
OF_ITS_COMMIT = "report/index.html"  # names the commit that it was made at; the model card has its figures
AUTHOR = {f"GIT_{role}_{key}": "verify" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}


class Clone:
    """A clone of the project with a cache of its own.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | AUTHOR | {"PATH": path}
        subprocess.run(["git", "clone", "--quiet", PROJECT, folder], check=True)

    def run(self, *command: str) -> str:
        """Run a command in the clone; end with what it says if it fails."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
        return done.stdout

    def repro(self, message: str, *options: str) -> str:
        """Run the pipeline, its output shown, commit what it gives and return the commit."""
        # Stdout is for the report.
        command = [*DVC, "repro", *options]
        if code := subprocess.run(
            command, cwd=self.folder, env=self.env, stdout=sys.stderr, check=False
        ).returncode:
            sys.exit(code)
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)
        return self.run("git", "rev-parse", "HEAD").strip()

    def read(self, commit: str, name: str) -> str:
        """Return a committed file's text."""
        return self.run("git", "show", f"{commit}:{name}")


def on_phantoms(params: dict, overrides: dict[str, dict]) -> dict:
    """Return params that make up their images; those of a project that does so already stay as they are.

    A section or param that an older commit does not have is left out.
    """
    if params["data"]["source"] == "phantom":
        return params
    changed = {section: dict(values) for section, values in params.items()}
    for section, values in overrides.items():
        if section in changed:
            changed[section] |= {name: value for name, value in values.items() if name in changed[section]}
    return changed


def judge(
    stage: str,
    old: dict[str, str],
    new: dict[str, str],
    before: dict[str, Any],
    after: dict[str, Any],
    earlier: set[str],
) -> tuple[str, str]:
    """Say whether a stage gave the same.

    Parameters
    ----------
    stage : str
    old, new : dict
        Hash of each of its outs, before and now.
    before, after : dict
        Its metrics, before and now.
    earlier : set of str
        Verdicts on the stages before it.

    Returns
    -------
    verdict : {"identical", "within tolerance", "different"}
    figures : str
        The outs that differ, or the metric that differs most.
    """
    if old == new:
        return IDENTICAL, ""
    outs = ", ".join(sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)))
    if stage in EXACT:
        return DIFFERENT, outs
    if stage == "audit":
        # The last digit of a similarity depends on the processor; what matters is counted in its metrics, and the
        # split, which has the groups, has to be the same.
        return (WITHIN if before == after else DIFFERENT), outs
    if missing := sorted(before.keys() - after.keys()):
        return DIFFERENT, f"{', '.join(missing)} missing"
    if rate := before.get("suggested_lr"):
        figures = f"suggested_lr {rate:g} -> {after['suggested_lr']:g}"
        return (WITHIN if 1 / FACTOR <= after["suggested_lr"] / rate <= FACTOR else DIFFERENT), figures
    shares = sorted(key for key in before if _is_share(before[key]) and not NOT_SHARES.search(key))
    shares = [key for key in shares if key in HEADLINES] or shares
    if not shares:
        # No figure says how far it is off: what it comes from does, unless that is the same.
        return DIFFERENT if earlier <= {IDENTICAL} or DIFFERENT in earlier else WITHIN, outs
    key = max(shares, key=lambda name: abs(after[name] - before[name]))
    figures = f"{key} {before[key]:g} -> {after[key]:g}"
    return WITHIN if abs(after[key] - before[key]) <= TOLERANCE else DIFFERENT, figures


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def compare(clone: Clone, old: str, new: str) -> list[dict[str, str]]:
    """Judge each stage of two commits."""
    locks = [yaml.safe_load(clone.read(commit, "dvc.lock"))["stages"] for commit in (old, new)]
    pipeline = yaml.safe_load(clone.read(new, "dvc.yaml"))["stages"]
    lines = []
    for stage, content in pipeline.items():
        if stage not in locks[0]:
            lines.append({"stage": stage, "verdict": "new", "what differs": ""})
            continue
        hashes = [
            {out["path"]: out["md5"] for out in lock[stage].get("outs", []) if out["path"] != OF_ITS_COMMIT}
            for lock in locks
        ]
        metrics: list[dict[str, Any]] = [{}, {}]
        for name in [file for entry in content.get("metrics", []) for file in entry]:
            for commit, own, outs in zip((old, new), metrics, hashes, strict=True):
                if name in outs:
                    own |= json.loads(clone.read(commit, name))
        verdict, figures = judge(stage, *hashes, *metrics, {line["verdict"] for line in lines})
        lines.append({"stage": stage, "verdict": verdict, "what differs": figures})
    return lines


def as_markdown(table: pd.DataFrame) -> str:
    """Return a table of Markdown, without the index."""
    rows = [table.columns.tolist(), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def confusion(clone: Clone, commit: str) -> str:
    """Return a commit's confusion matrix as a table of Markdown."""
    lines = clone.read(commit, "plots/confusion.csv").splitlines()
    pairs = pd.DataFrame([line.split(",") for line in lines[1:]], columns=lines[0].split(","))
    matrix = pd.crosstab(pairs["actual"], pairs["predicted"]).rename_axis(columns=None)
    return as_markdown(matrix.reset_index().rename(columns={"actual": "actual \\ predicted"}))


def verify(folder: Path) -> tuple[str, bool]:
    """Run the committed pipeline again; return the report, and whether all is as it should be."""
    clone = Clone(folder)
    if (archive := PROJECT / "data" / "archive.zip").exists():
        shutil.copy(archive, folder / "data")
    committed = clone.run("git", "rev-parse", "HEAD").strip()
    # By force, or a stage whose outs are all in git, and so in the clone, would not run.
    lines = compare(clone, committed, clone.repro("The run that verifies", "--force"))
    table = as_markdown(pd.DataFrame(lines))
    return f"### {committed[:10]}, run again\n\n{table}\n", all(line["verdict"] != DIFFERENT for line in lines)


def compare_with(folder: Path, base: str) -> str:
    """Run this commit and its base on made-up images and return the report for a pull request."""
    commits = {}
    for name in (base, "HEAD"):
        command = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        if found.returncode:
            sys.exit(f"error: git knows no commit {name}")
        commits[name] = found.stdout.strip()
    clone = Clone(folder)
    clone.run("git", "fetch", "--quiet", "origin", *commits.values())
    results = []
    for name, commit in commits.items():
        clone.run("git", "checkout", "--quiet", "--detach", commit)
        file = folder / "params.yaml"
        params = on_phantoms(yaml.safe_load(file.read_text(encoding="utf-8")), OVERRIDES)
        file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        results.append(clone.repro(f"{name} on made-up images"))
    # Shorter names than hashes make narrower tables.
    old, new = "base-run", "this-run"
    for tag, commit in zip((old, new), results, strict=True):
        clone.run("git", "tag", tag, commit)
    metrics = clone.run(*DVC, "metrics", "diff", "--md", old, new).strip() or "No metric differs."
    parts = [
        f"### This commit against `{base}`, both on made-up images",
        as_markdown(pd.DataFrame(compare(clone, old, new))),
        f"<details><summary>dvc metrics diff</summary>\n\n{metrics}\n\n</details>",
        f"Confusion matrix of `{base}`:\n\n{confusion(clone, old)}",
        f"Confusion matrix of this commit:\n\n{confusion(clone, new)}",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="compare with this commit or branch, on made-up images")
    base = parser.parse_args().base
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        if base:
            print(compare_with(clone, base))
            return
        report, right = verify(clone)
    print(report)
    sys.exit(None if right else "error: not all stages give what is committed")


if __name__ == "__main__":
    run_script(main)
