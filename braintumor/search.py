"""Search the settings of search.yaml with Optuna, each trial a DVC experiment.

    python -m braintumor.search [--trials N]

It may be stopped at any moment and started again: what it has learnt is in search.db.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import dvc.api
import optuna
from optuna.trial import Trial, TrialState

from braintumor.errors import UserError
from braintumor.params import read_settings, with_overrides
from braintumor.provenance import git
from braintumor.study import COMMITTED, DVC, PARAMS, recipe_of

SEARCH, STORAGE = Path("search.yaml"), "sqlite:///search.db"
EPOCH = re.compile(r"epoch (\d+)/\d+: .*; validation loss \S+ accuracy ([\d.]+)")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def suggest(trial: Trial, space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Draw a value for each param of the space.

    Parameters
    ----------
    trial : Trial
    space : dict
        Name such as ``train.lr`` -> ``low`` and ``high``, with ``log`` if it is one of factors, or ``choices``.
    """
    values = {}
    for name, kind in space.items():
        if "choices" in kind:
            # As text: Optuna keeps numbers and texts, but no lists.
            values[name] = json.loads(
                trial.suggest_categorical(name, [json.dumps(value) for value in kind["choices"]])
            )
        else:
            # Four digits tell as much and can be read in a table.
            value = trial.suggest_float(name, kind["low"], kind["high"], log=kind.get("log", False))
            values[name] = float(f"{value:.4g}")
    return values


def read_search(file: Path, content: dict) -> dict[str, Any]:
    """Read and check search.yaml.

    Parameters
    ----------
    file : Path
    content : dict
        Of params.yaml.

    Raises
    ------
    UserError
        If a param is not one, or if it does not take a bound or a choice.
    """
    search = read_settings(file)
    if missing := {"space", "overrides", "trials", "startup", "warmup"} - search.keys():
        raise UserError(f"{file}: lacks {', '.join(sorted(missing))}")
    counts = [search[name] for name in ("trials", "startup", "warmup")]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise UserError(f"{file}: trials, startup and warmup are whole numbers, got {counts}")
    if not isinstance(search["space"], dict) or not isinstance(search["overrides"], dict):
        raise UserError(f"{file}: space and overrides are params, each with what it may be")
    for name in [*search["space"], *search["overrides"]]:
        if not isinstance(name, str):
            raise UserError(f"{file}: {name}: is no param; they are named as in train.lr")
    for name, kind in search["space"].items():
        kind = kind if isinstance(kind, dict) else {}
        listed = "choices" in kind
        if not (
            isinstance(kind["choices"], list) and kind["choices"] if listed else {"low", "high"} <= kind.keys()
        ):
            raise UserError(f"{file}: {name}: needs low and high, or a list of choices")
        if unknown := kind.keys() - ({"choices"} if listed else {"low", "high", "log"}):
            raise UserError(f"{file}: {name}: {', '.join(sorted(map(str, unknown)))} is not asked for there")
        for value in kind["choices"] if listed else [kind["low"], kind["high"]]:
            try:
                # What is drawn between bounds is no integer.
                tried = value if listed else float(value)
                with_overrides(content, search["overrides"] | {name: tried})
            except (ValueError, TypeError, OverflowError) as error:  # pydantic's are ValueErrors, too
                raise UserError(f"{file}: {name}: {value}: {' '.join(str(error).split())}") from None
        if not listed:
            if not isinstance(kind.get("log", False), bool):
                raise UserError(f"{file}: {name}: log is true or false, got {kind['log']}")
            kind["low"], kind["high"] = float(kind["low"]), float(kind["high"])
            if kind["low"] >= kind["high"] or (kind.get("log") and kind["low"] <= 0):
                raise UserError(f"{file}: {name}: low must be less than high, and over 0 where the scale is log")
    return search


def run_trial(name: str, overrides: dict[str, Any], after_epoch: Callable[[int, float], bool]) -> tuple[str, str]:
    """Train as a DVC experiment in a copy of the project; end it early where `after_epoch` says so.

    Parameters
    ----------
    name : str
    overrides : dict
    after_epoch : callable
        Gets the epoch and its validation accuracy and says whether to give up.

    Returns
    -------
    state : {"finished", "given up", "failed"}
    reason : str
        Of a failure.
    """
    settings = [text for param, value in overrides.items() for text in ("-S", f"{param}={json.dumps(value)}")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        [*DVC, "exp", "run", "--temp", "--name", name, *settings, "train"],
        env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    lines, given_up = [], False
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if (match := EPOCH.match(line)) and after_epoch(int(match[1]), float(match[2])):
                given_up = True
                break
    finally:
        # DVC and what it runs, which goes on by itself otherwise.
        if process.poll() is None and (given_up or sys.exc_info()[0]):
            os.killpg(process.pid, signal.SIGINT)
        process.stdout.close()
        code = process.wait()
    if given_up:
        return "given up", ""
    said = [line for line in lines if line.lower().startswith("error: ")]
    return ("failed", said[0] if said else f"exit status {code}") if code else ("finished", "")


def resume(study: optuna.Study) -> None:
    """Put what was running when the search was stopped at the front of what is to come."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m braintumor.search", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, help="in place of the number in search.yaml")
    options = parser.parse_args(arguments)
    content = read_settings(PARAMS)
    search = read_search(SEARCH, content)
    if git("status", "--porcelain", "--", *COMMITTED).strip():
        raise UserError("commit params.yaml, dvc.yaml, braintumor and stages first: each trial names its commit")
    # Scores of other code, params or bounds are not to be learnt from.
    key = [recipe_of("HEAD", search["overrides"]), search["space"]]
    name = f"search-{sha256(json.dumps(key).encode()).hexdigest()[:6]}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=STORAGE, direction="maximize", load_if_exists=True)
    # Another seed at each start, or it would draw again what it has drawn.
    seed = content["train"]["seed"] + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=search["startup"], seed=seed)
    study.pruner = optuna.pruners.MedianPruner(search["startup"], search["warmup"])
    resume(study)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while len(study.get_trials(states=FINISHED)) < (options.trials or search["trials"]):
            one_trial(study, name, search)
    except KeyboardInterrupt:
        sys.exit("stopped: run it again for the rest")
    if study.get_trials(states=[TrialState.COMPLETE]):
        best = f"{name}-{study.best_trial.number}"
        print(f"best: {best}, validation accuracy {study.best_value:.4f}; `dvc exp apply {best}` takes it")


def one_trial(study: optuna.Study, name: str, search: dict[str, Any]) -> None:
    """Draw settings, train with them and tell the study how it went."""
    trial = study.ask()
    values = suggest(trial, search["space"])
    experiment = f"{name}-{trial.number}"
    print(f"{experiment}: {', '.join(f'{param}={value}' for param, value in values.items())}", flush=True)

    def after_epoch(epoch: int, accuracy: float) -> bool:
        trial.report(accuracy, epoch)
        return trial.should_prune()

    state, reason = run_trial(experiment, search["overrides"] | values, after_epoch)
    if state == "finished":
        score = dvc.api.metrics_show("metrics/train.json", rev=experiment)["validation_accuracy"]
        study.tell(trial, score)
        print(f"{experiment}: validation accuracy {score:.4f}", flush=True)
    elif state == "given up" or "diverged" in reason:
        # Both are settings to keep away from.
        study.tell(trial, state=TrialState.PRUNED)
        print(f"{experiment}: given up{f': {reason}' if reason else ''}", flush=True)
    else:
        study.tell(trial, state=TrialState.FAIL)
        raise UserError(f"{experiment}: {reason.removeprefix('error: ')}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
