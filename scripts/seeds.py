"""Run the committed recipe over folds and seeds of each protocol, what is missing only, and sum up the table.

Each row of metrics/seeds.csv is one DVC experiment of the whole pipeline in a copy of the project, so that the
checkout stays as it is. Stopped at any moment, it starts with the row that was running. Rows of another recipe
than the committed one are run again.
"""

import json
import subprocess
import sys
import time

import dvc.api
import pandas as pd
import yaml

from braintumor import pages
from braintumor.params import load_params, without_later
from braintumor.results import read_scores
from braintumor.study import STUDY, read_same_results, with_same_results
from braintumor.tables import write_table
from scripts import PROJECT, run, run_script

RESULTS = PROJECT / "metrics" / "seeds.csv"
PAGE = PROJECT / "docs" / "training.md"
COLUMNS = [
    "protocol", "group_by", "seed", "fold", "accuracy", "distinct_accuracy", "copy_free_accuracy", "val_accuracy",
    "epochs", "seconds", "device", "commit",
]  # fmt: skip
KEY = COLUMNS[:4]
# The stages whose code a row's scores depend on, and the sections of the params.
STAGES = "download", "audit", "preprocess", "split", "train"
SECTIONS = "data", "audit", "preprocess", "split", "train"


def wanted(seed: int) -> list[tuple[str, str, int, int]]:
    """Return protocol, group_by, seed and fold of each row: the first of each protocol, then the second ones.

    Parameters
    ----------
    seed : int
        The committed one, which the folds are run with.
    """
    return [
        row
        for number in range(5)
        for row in (
            ("grouped", "patient", seed, number),
            ("official", "patient", seed + number, 0),
            ("grouped", "copy", seed, number),
            ("copy_free", "patient", seed + number, 0),
        )
    ]


def run_row(row: tuple[str, str, int, int]) -> dict:
    """Run one experiment and return its line of the table."""
    protocol, group_by, seed, fold = row
    head = run("git", "rev-parse", "--short", "HEAD").strip()
    # DVC finds no name that two commits have an experiment of.
    name = f"seeds-{head}-{protocol}-{group_by}-{seed}-{fold}"
    if name in run("dvc", "exp", "list", "--name-only").split():
        run("dvc", "exp", "remove", name)
    overridden = {
        "split.protocol": protocol,
        "split.group_by": group_by,
        "split.fold": fold,
        "train.seed": seed,
    }
    overrides = [text for param, value in overridden.items() for text in ("-S", f"{param}={value}")]
    start = time.perf_counter()
    run("dvc", "exp", "run", "--temp", "--name", name, *overrides, "evaluate")
    seconds = time.perf_counter() - start
    test, train = (
        dvc.api.metrics_show(f"metrics/{stage}.json", repo=str(PROJECT), rev=name) for stage in ("test", "train")
    )
    # Where it was trained, which the run cache may have done elsewhere.
    device = json.loads(dvc.api.read("models/model.json", repo=str(PROJECT), rev=name))["environment"]["device"]
    values = [
        *row, test["accuracy"], test["accuracy_distinct"], test.get("accuracy_copy_free"),
        train["validation_accuracy"], train["epochs"], round(seconds), device, head,
    ]  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def summary(table: pd.DataFrame) -> str:
    """Return mean and standard deviation of each protocol's rows, as a table of Markdown."""
    lines = []
    for (protocol, group_by), rows in table.groupby(["protocol", "group_by"], sort=False):
        cells = []
        for column in ("accuracy", "distinct_accuracy", "copy_free_accuracy", "val_accuracy"):
            mean, deviation = 100 * rows[column].mean(), 100 * rows[column].std()
            cells.append(f"{mean:.2f}%" if len(rows) == 1 else f"{mean:.2f}% ± {deviation:.2f}")
        name = f"`grouped` by {group_by}, folds" if protocol == "grouped" else f"`{protocol}`, seeds"
        lines.append([name, f"{len(rows)} of 5", *cells])
    header = ["protocol", "rows", "all test images", "distinct", "without a copy in training", "validation"]
    return pages.table(header, lines)


def code() -> list[str]:
    """Return the files of code that a row's scores depend on, as dvc.yaml says."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    deps = {dep for stage in STAGES for dep in stages[stage]["deps"]}
    return sorted(dep for dep in deps if dep.startswith(("braintumor/", "stages/")))


def settings(text: str) -> dict[str, dict]:
    """Return the params that a row's scores depend on."""
    params = yaml.safe_load(text)
    return without_later({section: params[section] for section in SECTIONS})


def is_current(commit: str) -> bool:
    """Whether nothing that a row's scores depend on has changed since a commit."""
    known = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    if subprocess.run(known, cwd=PROJECT, check=False, capture_output=True).returncode:
        sys.exit(
            f"error: {RESULTS} has rows of the commit {commit}, which is not in this clone: get the whole history"
        )
    same = read_same_results(PROJECT / STUDY)
    then, head = (with_same_results(run("git", "ls-tree", at, "--", *code()), same) for at in (commit, "HEAD"))
    if then != head:
        return False
    now = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    return settings(run("git", "show", f"{commit}:params.yaml")) == settings(now)


def main() -> None:
    if run("git", "status", "--porcelain", "--", "params.yaml", "dvc.yaml", *code()).strip():
        sys.exit("error: commit the code and the params first: each row of the table names its commit")
    table = read_scores(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=COLUMNS)
    current = {commit: is_current(str(commit)) for commit in table["commit"].unique()}
    stale = sorted(str(commit) for commit, same in current.items() if not same)
    if stale:
        print(f"rows of {', '.join(stale)} are of other code or params, and are run again", flush=True)
    table = table[table["commit"].map(current).astype(bool)].reset_index(drop=True)
    rows = wanted(load_params(PROJECT / "params.yaml").train.seed)
    for number, row in enumerate(rows, start=1):
        if (table[KEY].astype(str) == [str(value) for value in row]).all(axis=1).any():
            continue
        named = ", ".join(f"{name} {value}" for name, value in zip(KEY, row, strict=True))
        print(f"{number} of {len(rows)}: {named}", flush=True)
        result = pd.DataFrame([run_row(row)])
        table = pd.concat([table, result], ignore_index=True) if len(table) else result
        write_table(table, RESULTS)
        pages.fill_file(PAGE, {"seeds": summary(table)})
        print(result.to_string(index=False), flush=True)


if __name__ == "__main__":
    run_script(main)
