"""The study of study.yaml: what is missing of it is queued, run and read back through DVC.

    python -m braintumor.study [PART ...] [--list] [--jobs N]

It may be stopped at any moment and started again. Run it where params.yaml and study.yaml lie.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd
import yaml

from braintumor.device import keep_freed_memory
from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.params import Params, load_params, read_settings, with_later, with_overrides, without_later
from braintumor.provenance import git
from braintumor.results import read_scores
from braintumor.study_tables import fill_page, ladder, ladder_figure
from braintumor.tables import read_table, write_table

STUDY, PARAMS, MANIFEST = Path("study.yaml"), Path("params.yaml"), Path("data/manifest.csv")
RESULTS, PLOTS, PAGE = Path("metrics/study.csv"), Path("plots/study"), Path("docs/study.md")
TARGET = "evaluate"  # what comes after it, such as pictures and the report, no row needs
# What an experiment is queued from has to be committed, or its commit says something else than what ran.
COMMITTED = ["params.yaml", "dvc.yaml", "braintumor", "stages"]
KEPT = re.compile(r"(accuracy|images|sensitivity|balanced_accuracy|f1$|mcc)")
DVC = [sys.executable, "-m", "dvc"]


@dataclass(frozen=True)
class Experiment:
    """One row of the study.

    Attributes
    ----------
    name : str
        Of DVC's experiment.
    part, entry : str
        Where it stands in study.yaml; an entry's rows differ in a seed, a fold or a value that is compared.
    cut : str
        What was cut for two cores.
    overrides : dict
        Params by names such as ``train.lr``.
    repeated : bool
        Whether the entry's rows are repetitions, whose mean counts.
    seed_found : str
        What the seed notebook reports for it.
    """

    name: str
    part: str
    entry: str
    cut: str
    overrides: dict[str, Any]
    repeated: bool
    seed_found: str


@dataclass(frozen=True)
class Record:
    """What DVC knows of an experiment.

    Attributes
    ----------
    state : {"success", "running", "queued", "failed"}
    recipe : str or None
        See `recipe_of`.
    commit : str
        That it started from.
    reason : str
        Of a failure.
    pid : int or None
        Of a running one.
    metrics : dict
        Of each file in metrics/, by its name.
    """

    name: str
    state: str
    recipe: str | None
    commit: str
    reason: str
    pid: int | None
    metrics: dict[str, dict[str, float]]


def read_study(file: Path, content: dict) -> list[Experiment]:
    """Read the rows of a study, in the order in which they run.

    Parts follow each other; within one, the first row of each entry comes before the second of any. Repetitions
    come last: a table with a row of everything says more than one with five of the first.

    Parameters
    ----------
    file : Path
        ``parts`` -> part -> ``experiments``: a list of ``name``, ``overrides``, ``cut``, and ``vary`` or
        ``repeat``, one param with a list of values, each of which makes a row.
    content : dict
        Of params.yaml.

    Raises
    ------
    UserError
        If a name occurs twice, a param is not one, or an experiment has both ``vary`` and ``repeat``.
    """
    try:
        return _read_parts(file, read_settings(file)["parts"], content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: needs parts with experiments, each with a name ({error!r})") from None


def _read_parts(file: Path, parts: dict, content: dict) -> list[Experiment]:
    ranked = []
    for place, (part, described) in enumerate(parts.items()):
        for entry in described["experiments"]:
            name, cut = entry["name"], entry.get("cut", described.get("cut", "none"))
            overrides = entry.get("overrides", {})
            if {"vary", "repeat"} <= entry.keys():
                raise UserError(f"{file}: {name} has both vary and repeat: make two experiments of it")
            repeated = "repeat" in entry
            varied_params = entry.get("repeat" if repeated else "vary", {None: [None]})
            if len(varied_params) != 1:
                raise UserError(f"{file}: {name} varies {len(varied_params)} params: one, with a list of values")
            ((param, values),) = varied_params.items()
            for number, value in enumerate(values):
                ending = f"-{param.split('.')[1]}-{value}" if param else ""
                varied = overrides | ({param: value} if param else {})
                found = entry.get("seed_found", "")
                row = Experiment(f"{name}{ending}", part, name, cut, varied, repeated, found)
                rank = (number, 0, 0) if repeated and number else (0, place, number)
                ranked.append((rank, row))
                try:
                    with_overrides(content, varied)
                except ValueError as error:  # pydantic's are such, too
                    raise UserError(f"{file}: {row.name}: {' '.join(str(error).split())}") from None
    experiments = [row for _, row in sorted(ranked, key=lambda pair: pair[0])]
    names = [row.name for row in experiments]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file}: named twice: {', '.join(twice)}")
    return experiments


def dvc(*arguments: str) -> str:
    """Return what a DVC command prints.

    Raises
    ------
    UserError
        If it fails.
    """
    # Its workers and the stages' commands say `dvc` and `python`.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Files, since the workers that it starts would keep a pipe open as long as they run.
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        done = subprocess.run(
            [*DVC, *arguments], env=os.environ | {"PATH": path}, stdout=out, stderr=errors, check=False
        )
        for file in (out, errors):
            file.seek(0)
        if done.returncode:
            raise UserError(f"dvc {' '.join(arguments)} failed: {' '.join(errors.read().split())[-1000:]}")
        return out.read()


def _again(*arguments: str) -> str:
    """Return what a DVC command prints that fails where an experiment's folder comes or goes meanwhile."""
    for _ in range(4):
        try:
            return dvc(*arguments)
        except UserError:
            time.sleep(3)
    return dvc(*arguments)


@cache
def read_same_results(file: Path) -> dict[str, str | None]:
    """Return which contents of code give the results of older ones, by git's hashes: ``same_results`` of a study.

    None stands for a file that was not there, and that no older result needs.

    Raises
    ------
    UserError
        If something there is no such hash.
    """
    same = (read_settings(file) if file.exists() else {}).get("same_results") or {}
    if not isinstance(same, dict):
        raise UserError(f"{file}: same_results: {same} is no list of hashes, each with an older one")
    for content in [*same, *(content for content in same.values() if content is not None)]:
        if not re.fullmatch("[0-9a-f]{40}", str(content)) or not isinstance(content, str):
            raise UserError(f"{file}: same_results: {content} is none of git's hashes, 40 hex digits in quotes")
    return same


def with_same_results(listing: str, same: dict[str, str | None]) -> str:
    """Return a listing of git's with each content that gives an older one's results as that older one.

    Files that were not there are left out.
    """
    lines = []
    for line in listing.splitlines(keepends=True):
        content = older = line.split()[2]  # mode, kind, hash, path
        for _ in same:  # one may stand for another that stands for a third
            older = same.get(older, older)
        if older is not None:
            lines.append(line.replace(content, older))
    return "".join(lines)


@cache
def committed(commit: str) -> tuple[dict, str, list[str]]:
    """Return a commit's params, what its stages up to the target run (commands and code), and their sections."""
    stages = yaml.safe_load(git("show", f"{commit}:dvc.yaml"))["stages"]
    needed = list(stages)[: list(stages).index(TARGET) + 1]
    deps = sorted(
        {dep for name in needed for dep in stages[name]["deps"] if dep.startswith(("braintumor", "stages"))}
    )
    commands = [stages[name]["cmd"] for name in needed]
    sections = sorted({section for name in needed for section in stages[name].get("params", [])})
    content = with_later(yaml.safe_load(git("show", f"{commit}:params.yaml")))
    code = with_same_results(git("ls-tree", commit, *deps), read_same_results(STUDY))
    return content, json.dumps([commands, code]), sections


def recipe_of(commit: str, overrides: dict[str, Any] | None = None) -> str | None:
    """Return a hash of all that decides a result: commands, code and params of the stages up to the target.

    Code that gives the same results as an older one, as the study says, counts as that, and so does a param that
    came later. None for a commit whose
    params are none of today's.
    """
    try:
        content, code, sections = committed(commit)
        params = with_overrides(content, overrides or {}).model_dump()
    except (ValueError, subprocess.CalledProcessError):
        return None
    used = without_later({section: params[section] for section in sections if section in params})
    return sha256(json.dumps([code, used], sort_keys=True).encode()).hexdigest()[:12]


def baselines() -> list[str]:
    """Return the commits that DVC has experiments of, this one first."""
    commits = [git("rev-parse", "HEAD").strip()]
    for name in git("for-each-ref", "--format=%(refname)", "refs/exps").split():
        if match := re.match(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/", name):
            commits.append(match[1] + match[2])
        elif name.startswith("refs/exps/celery/"):
            commits += re.findall(r"dvc-exp:[0-9a-f]{40}:([0-9a-f]{40}):", git("reflog", "show", name))
    return list(dict.fromkeys(commits))


def read_records(names: set[str]) -> list[Record]:
    """Ask DVC for the experiments of some names, finished or not."""
    revisions = [argument for commit in baselines() for argument in ("--rev", commit)]
    shown = json.loads(_again("exp", "show", "--json", *revisions))
    records = []
    for baseline in shown:
        for experiment in baseline["experiments"] or []:
            if experiment["name"] not in names:
                continue
            executor = experiment["executor"] or {"state": "success"}
            local = executor.get("local") or {}
            revision = experiment["revs"][0]
            metrics = (revision["data"] or {}).get("metrics") or {}
            records.append(
                Record(
                    experiment["name"],
                    executor["state"],
                    recipe_of(revision["rev"]),
                    baseline["rev"],
                    read_reason(local.get("log"), local.get("returncode"))
                    if executor["state"] == "failed"
                    else "",
                    local.get("pid"),
                    {Path(file).stem: content.get("data") or {} for file, content in metrics.items()},
                )
            )
    return records


def read_reason(log: str | None, code: int | None) -> str:
    """Return the line of a failed experiment's log that says why, without the name of a home folder."""
    lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if log else []
    said = [line for line in lines if line.lower().startswith("error: ")]
    if said:
        return said[0][len("error: ") :].replace(str(Path.home()), "~")
    return f"killed, or failed without a word (exit status {code})"


def described(row: Experiment, params: Params) -> dict[str, Any]:
    """Return the part of an experiment's line of the table that says what it is."""
    return {
        "part": row.part,
        "entry": row.entry,
        "name": row.name,
        "repeated": row.repeated,
        "seed_found": row.seed_found,
        "cut": row.cut,
        "model": params.train.model,
        "protocol": params.split.protocol,
        "group_by": params.split.group_by,
        "size": params.preprocess.size,
        "epochs": params.train.epochs,
        "fold": params.split.fold,
        "seed": params.train.seed,
        "overrides": json.dumps(row.overrides),
    }


def scored(record: Record) -> dict[str, Any]:
    """Return the part of an experiment's line that says how it ended, with its metrics where it has succeeded."""
    # DVC shows the committed run's metrics for what has failed before it made its own.
    metrics = record.metrics if record.state == "success" else {}
    test, baseline = metrics.get("test", {}), metrics.get("baselines", {})
    return {
        "state": record.state,
        "reason": record.reason,
        "recipe": record.recipe,
        "commit": record.commit[:10],
        "suggested_lr": metrics.get("lr_range", {}).get("suggested_lr"),
        "validation_accuracy": metrics.get("train", {}).get("validation_accuracy"),
        **{key: value for key, value in test.items() if KEPT.match(key)},
        **{f"baseline_{key}": value for key, value in baseline.items() if key.startswith("accuracy")},
    }


class Study:
    """A study and where it stands.

    Parameters
    ----------
    experiments : list of Experiment
    """

    def __init__(self, experiments: list[Experiment]) -> None:
        self.experiments = experiments
        self.recipes = {row.name: recipe_of("HEAD", row.overrides) for row in experiments}
        table = read_scores(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=["name", "recipe", "state"])
        current = table["recipe"] == table["name"].map(self.recipes)
        self.kept = {line["name"]: line for line in table[current].to_dict("records")}
        self.records: dict[str, Record] = {}
        self.stale: list[Record] = []

    def look(self) -> None:
        """Read DVC's records; of several of one row a finished one counts, then one that may still finish."""
        order = ["failed", "queued", "running", "success"]
        known = sorted(read_records(set(self.recipes)), key=lambda record: order.index(record.state))
        self.records = {record.name: record for record in known if record.recipe == self.recipes[record.name]}
        self.stale = [record for record in known if record.recipe != self.recipes[record.name]]

    def state(self, row: Experiment) -> str:
        """Return success, running, queued, failed or missing."""
        if row.name in self.records:
            return self.records[row.name].state
        return self.kept[row.name]["state"] if row.name in self.kept else "missing"

    def reason(self, row: Experiment) -> str:
        """Return why a row failed."""
        return self.records[row.name].reason if row.name in self.records else self.kept[row.name]["reason"]

    def rows(self, *states: str) -> list[Experiment]:
        """Return the rows in some states, in the study's order."""
        return [row for row in self.experiments if self.state(row) in states]

    def queue(self, parts: list[str]) -> None:
        """Queue what is neither finished nor in the queue, of some parts or all; what failed is tried again.

        What the queue has of other parts is taken out of it.
        """
        head = git("rev-parse", "HEAD").strip()
        asked = [row for row in self.rows("missing", "failed") if not parts or row.part in parts]
        tasks = {record.name for record in self.stale if record.state in ("queued", "failed")}
        tasks |= {row.name for row in asked if row.name in self.records}
        if parts:
            put_off = {row.name for row in self.rows("queued") if row.part not in parts}
            tasks |= put_off
            self.records = {name: record for name, record in self.records.items() if name not in put_off}
        # What ended at other commits stays; at this one two experiments cannot have the same name.
        finished = {r.name for r in self.stale if r.state == "success" and r.commit == head}
        for kind, names in (("queue", tasks), ("exp", finished)):
            if names:
                dvc(kind, "remove", *sorted(names))
        for row in asked:
            overrides = [
                text for name, value in row.overrides.items() for text in ("-S", f"{name}={json.dumps(value)}")
            ]
            dvc("exp", "run", "--queue", "--name", row.name, *overrides, TARGET)
            print(f"queued {row.name}", flush=True)

    def export(self, content: dict) -> None:
        """Write the table, the ladder and the tables of the page."""
        lines = []
        for row in self.experiments:
            known = described(row, with_overrides(content, row.overrides))
            record = self.records.get(row.name)
            if record and record.state in ("success", "failed"):
                lines.append(known | scored(record))
            elif row.name in self.kept:  # until a newer outcome takes its place
                lines.append(self.kept[row.name] | known)
        if not lines:
            return
        table = pd.DataFrame(lines)
        # A failed row has no counts, beside which pandas would make all others floats.
        counts = [name for name in table if name.startswith("images")]
        write_table(table.astype(dict.fromkeys(counts, "Int64")), RESULTS)
        rungs = ladder(table)
        if len(rungs):
            write_table(rungs, PLOTS / "ladder.csv")
            ladder_figure(rungs, PLOTS / "ladder.png")
        if PAGE.exists():
            parts = dict.fromkeys(row.part for row in self.experiments)
            page = fill_page(PAGE.read_text(encoding="utf-8"), table, parts)
            with replacing_file(PAGE) as beside:
                beside.write_text(page, encoding="utf-8")


def jobs_at_a_time(params: Params) -> int:
    """Return how many trainings the machine has room for: one on a GPU, else of `train.threads` cores."""
    if params.train.device != "cpu":
        import torch  # here, since it takes seconds to import

        if torch.cuda.is_available():
            return 1  # all of them would take the same one
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // params.train.threads)


def is_alive(pid: int | None) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return pid is not None


def run(study: Study, content: dict, jobs: int) -> None:
    """Run what is queued and write the table after each experiment, until nothing is left to wait for."""
    told, lost = {row.name for row in study.rows("success")}, set()
    refs, looked = "", 0.0
    while True:
        # An experiment that ends changes git's refs; the rest, such as workers that were killed, shows in time.
        if (now := git("for-each-ref", "refs/exps")) == refs and time.monotonic() - looked < 60:
            time.sleep(1)
            continue
        refs, looked = now, time.monotonic()
        study.look()
        study.export(content)
        for row in study.rows("success", "failed"):
            if row.name in study.records and row.name not in told:
                told.add(row.name)
                print(describe(study, row), flush=True)
        if not study.rows("queued", "running"):
            dvc("queue", "stop")  # the second of two workers does not always see that nothing is left
            return
        # A process that is gone at two looks took its worker with it.
        gone = {row.name for row in study.rows("running") if not is_alive(study.records[row.name].pid)}
        if gone & lost:
            dvc("queue", "kill", "--force", *sorted(gone & lost))
        lost = gone
        # DVC takes a worker that is too busy to answer within a second for none, and starts it a second time.
        if study.rows("queued") and len(study.rows("running")) - len(gone) < jobs:
            dvc("queue", "start", "--jobs", str(jobs))


def describe(study: Study, row: Experiment) -> str:
    """Say in a line how an experiment ended."""
    number = f"{study.experiments.index(row) + 1} of {len(study.experiments)}"
    record = study.records[row.name]
    if record.state == "failed":
        return f"{number}: {row.name} failed: {record.reason}"
    return f"{number}: {row.name}: {100 * record.metrics['test']['accuracy']:.1f}% of the test images right"


def stop(study: Study) -> None:
    """End the workers and what they run; what is queued stays in the queue."""
    print("stopping; what runs begins anew with the next start", flush=True)
    dvc("queue", "stop")
    study.look()
    if running := [row.name for row in study.rows("running")]:
        dvc("queue", "kill", "--force", *running)


def show(study: Study, content: dict, parts: list[str]) -> None:
    """List the rows of some parts or all with their states, and the time that those to run will take."""
    from braintumor.pace import seconds_of  # here, since torch takes seconds to import

    shown = [row for row in study.experiments if not parts or row.part in parts]
    params = {row.name: with_overrides(content, row.overrides) for row in shown}
    waiting = [row for row in shown if study.state(row) != "success"]
    images = len(read_table(MANIFEST)) if MANIFEST.exists() else None
    seconds = {row.name: seconds_of(params[row.name], images) for row in waiting}
    lines = [
        {
            "experiment": row.name,
            "state": study.state(row),
            "minutes": f"{seconds[row.name] / 60:.1f}" if row.name in seconds else "",
            "cut": row.cut,
        }
        for row in shown
    ]
    print(pd.DataFrame(lines).to_string(index=False))
    for row in shown:
        if study.state(row) == "failed":
            when = "failed" if row.name in study.records else f"failed when {RESULTS} was made"
            print(f"{row.name} {when}: {study.reason(row)}")
    print(f"\n{len(seconds)} of {len(lines)} to run, about {sum(seconds.values()) / 3600:.1f} hours one at a time")


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m braintumor.study", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="of study.yaml; all where none is named")
    parser.add_argument("--list", action="store_true", help="show what will run and how long it will take")
    parser.add_argument(
        "--jobs", type=int, help="experiments at a time; as many as have their train.threads cores, one on a GPU"
    )
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as the trainings do whose time is estimated
    params = load_params(PARAMS)
    content = read_settings(PARAMS)
    experiments = read_study(STUDY, content)
    if git("status", "--porcelain", "--", *COMMITTED).strip():
        raise UserError(
            "commit params.yaml, dvc.yaml, braintumor and stages first: each experiment names its commit"
        )
    study = Study(experiments)
    if unknown := set(options.parts) - {row.part for row in experiments}:
        raise UserError(f"{STUDY} has no part {', '.join(sorted(unknown))}")
    study.look()
    if options.list:
        show(study, content, options.parts)
        return
    # Ended by a batch system as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        study.queue(options.parts)
        run(study, content, options.jobs or jobs_at_a_time(params))
    except KeyboardInterrupt:
        stop(study)
        sys.exit("stopped: run it again for the rest")
    failed = study.rows("failed")
    print(f"{len(study.rows('success'))} of {len(experiments)} finished, in {RESULTS}; {len(failed)} failed")
    for row in failed:
        print(f"{row.name} failed: {study.reason(row)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
