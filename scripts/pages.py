"""Write the committed run's figures, and those of two experiments, into the README and docs/.

    python -m scripts.pages [--official NAME] [--where NAME] [--folds NAME ...] [--demo]

The names are experiments of DVC, with split.protocol=official, with explain.boxes and of every fold; `--demo`
takes what `make demo` has made. The tables of one not given stay as they are. The ladder comes from
plots/study/ladder.csv.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException

from braintumor.intervals import share
from braintumor.pages import fill_file, table
from braintumor.params import load_params
from braintumor.results import (
    ABSENT,
    interval_text,
    mean_interval,
    number_with_interval,
    percent,
    read_scores,
    with_interval,
)
from braintumor.sections import CALIBRATED, NAMES
from scripts import PROJECT, run_script

PAGES = "README.md", "docs/evaluation.md", "docs/explanation.md", "docs/training.md"
SUBSETS = {
    "all": "all test images",
    "distinct": "distinct: each group of copies weighs one",
    "copied": "copied: with a copy in training",
    "copy_free": "copy-free",
    "patient_seen": "of a patient known to be in training",
    "patient_free": "neither a copy nor a known patient in training",
    "patients": "each known patient weighs one",
    "patients_together": "known patients, by the mean probability of their images",
}
BASELINES = {
    "majority": "nothing: the class that most training images have",
    "size": "width, height and mode of the file",
    "intensity": "grey values, without their places",
    "border": "the outer tenth of each side",
    "network_border": "the network, on the same outer tenth",
    "network": "**the network**",
}
LADDER = {
    "seed": "`seed`: half of `Testing`, the other half validates",
    "official": "`official`: `Testing`, as is usually reported",
    "copy_free": "`copy_free`: `Testing`, its copies do not train",
    "grouped by copy": "`grouped` by copy: no copy on both sides",
    "grouped by patient": "**`grouped` by patient: new people**",
}


class Run:
    """The files of a run: of the checkout or another folder, or of a revision that DVC knows."""

    def __init__(self, revision: str | None = None, folder: Path = PROJECT) -> None:
        self.revision, self.folder = revision, folder

    def text(self, path: str) -> str:
        """Read a file of the run."""
        if self.revision is None:
            return (self.folder / path).read_text(encoding="utf-8")
        return dvc.api.read(path, repo=str(PROJECT), rev=self.revision, encoding="utf-8")

    def scores(self, name: str) -> dict:
        """Read one of the files in metrics/."""
        return json.loads(self.text(f"metrics/{name}.json"))

    def rows(self, name: str) -> dict[str, dict]:
        """Read a table in plots/, by its first column."""
        content = pd.read_csv(io.StringIO(self.text(f"plots/{name}.csv")))
        return {row.iloc[0]: row.to_dict() for _, row in content.iterrows()}


def of_accuracy(row: dict) -> str:
    """Write a row's accuracy with its interval."""
    return interval_text(row["accuracy"], row["low"], row["high"])


def subset_cell(row: dict, images: int) -> str:
    """Write a subset's accuracy and size, or that it is all of the images or none."""
    if row["images"] == 0:
        return "none"
    if row["images"] == images and row["subset"] not in ("all", "distinct"):
        return "all of them"
    return f"{of_accuracy(row)} of {row['units']:,}"


def calibration_table(run: Run) -> str:
    """Return what the temperature changes on a run's test images."""
    calibration = run.scores("calibration")
    rows = [["temperature", "1", f"{calibration['temperature']:.3f}"]]
    written = dict.fromkeys(CALIBRATED, number_with_interval) | {"confident_errors": with_interval}
    for name, text in CALIBRATED.items():
        rows.append([text, *(written[name](calibration, f"{name}_{side}") for side in ("before", "after"))])
    return table(["on the test images", "before", "after"], rows)


def run_tables(run: Run) -> dict[str, str]:
    """Return the tables of one run alone."""
    test, calibration = run.scores("test"), run.scores("calibration")
    groups = test["accuracy"], test["accuracy_groups_low"], test["accuracy_groups_high"]
    numbers = [
        [text, f"{test[name]:.3f}", f"[{test[f'{name}_low']:.3f}, {test[f'{name}_high']:.3f}]"]
        for name, (text, bootstrap) in NAMES.items()
        if name == bootstrap  # accuracy is in a table of its own
    ]
    negative = load_params(PROJECT / "params.yaml").evaluate.negative
    tumours = [
        [
            f"of the {test['tumours']:,} tumours taken for some tumour",
            with_interval(test, "tumour_sensitivity"),
            str(test["tumours_missed"]),
        ],
        [
            f"of the {test['images'] - test['tumours']:,} others called `{negative}`",
            with_interval(test, "tumour_specificity"),
            str(test["false_alarms"]),
        ],
    ]
    subgroups = pd.read_csv(io.StringIO(run.text("plots/subgroups.csv")))
    parts = [
        [
            row["subgroup"],
            str(row["value"]),
            f"{row['images']:,}",
            percent(row["accuracy"]) + ", too few" if row["too_small"] else of_accuracy(row),
        ]
        for row in subgroups.to_dict("records")
    ]
    coverage = [["all", percent(1 - test["accuracy"])]]
    coverage += [
        [f"the {share}% most certain", with_interval(calibration, f"risk_coverage_{share}")] for share in (90, 80)
    ]
    flips = [
        ["as they are", with_interval(test, "accuracy")],
        ["mean of each image and its mirror image", with_interval(test, "accuracy_flips")],
    ]
    return {
        "intervals": table(
            ["accuracy", "95% interval"],
            [
                ["Wilson, images independent", with_interval(test, "accuracy")],
                ["bootstrap over groups", interval_text(*groups)],
            ],
        ),
        "numbers": table(["", "value", "95% interval, over groups"], numbers),
        "calibration": calibration_table(run),
        "tumours": table(["", "right", "wrong"], tumours),
        "coverage": table(["answered", "wrong"], coverage),
        "subgroups": table(["", "", "images", "right"], parts),
        "flips": table(["probabilities", "right"], flips),
    }


def folds_row() -> list[list[str]]:
    """Return the README's row of all five folds by patient, once metrics/seeds.csv has them."""
    rows = read_scores(PROJECT / "metrics/seeds.csv").query("protocol == 'grouped' and group_by == 'patient'")
    if len(rows) < 5:
        return []
    cells = (interval_text(*mean_interval(rows[name])) for name in ("accuracy", "distinct_accuracy"))
    return [["mean of the five folds, which test each image once (Student's t)", *cells]]


def two_columns(run: Run, official: Run) -> dict[str, str]:
    """Return the tables that show both protocols, and the README's."""
    header = ["grouped by patient", "official"]
    subsets, baselines = [[each.rows(name) for each in (run, official)] for name in ("subsets", "baselines")]
    images = [each["all"]["images"] for each in subsets]
    parts = [
        [text, *(subset_cell(each[name], n) for each, n in zip(subsets, images, strict=True))]
        for name, text in SUBSETS.items()
    ]
    blind = [[text, *(of_accuracy(each[name]) for each in baselines)] for name, text in BASELINES.items()]
    new, usual = (
        [f"{of_accuracy(each[name])} of {each[name]['units']:,}" for name in ("all", "distinct", "copy_free")]
        for each in subsets
    )
    over_people = (
        f"; over people [{100 * test['accuracy_groups_low']:.1f}, {100 * test['accuracy_groups_high']:.1f}]"
        for test in (run.scores("test"), official.scores("test"))
    )
    new[0], usual[0] = (cell + more for cell, more in zip((new[0], usual[0]), over_people, strict=True))
    results = [
        ["new people: `grouped` by patient, first of five folds (the committed run)", new[0], new[1]],
        *folds_row(),
        ["what is usually reported: `official`", usual[0], usual[1]],
        [f"of those, the {subsets[1]['copy_free']['images']} images without a copy in `Training`", usual[2], ""],
    ]
    return {
        "subsets": table(["accuracy on", *header], parts),
        "baselines": table(["what is seen", *header], blind),
        "calibration-official": calibration_table(official),
        "results": table(["tested on", "all test images", "distinct test images"], results),
    }


def folds_table(names: list[str]) -> str:
    """Return what the folds get right, by class and by person, and on how many people their errors fall."""
    tests = []
    for name in names:
        tested = pd.read_csv(io.StringIO(Run(name).text("data/predictions.csv")), dtype={"patient": str})
        tests.append(tested.assign(right=tested["class"] == tested["prediction"]))
    classes = sorted(set(tests[0]["class"]))
    probabilities = [f"calibrated_{name}" for name in classes]

    def cells(tested: pd.DataFrame) -> list[str]:
        people = tested.dropna(subset="patient").groupby("patient")
        together = people[probabilities].mean().idxmax(axis=1) == "calibrated_" + people["class"].first()
        by_class = [tested["right"][tested["class"] == name] for name in classes]
        whole, *parts = (
            interval_text(*share(right.to_numpy())) for right in (tested["right"], *by_class, together)
        )
        return [f"{len(tested):,}", whole, percent(tested.groupby("copy_group")["right"].mean().mean()), *parts]

    everyone = pd.concat(tests)
    rows = [[str(fold), *cells(tested)] for fold, tested in enumerate(tests)] + [["all", *cells(everyone)]]
    errors = (~everyone["right"]).groupby(everyone["patient"]).sum().sort_values(ascending=False)
    text = table(["fold", "images", "right", "distinct", *classes, "known people, their images together"], rows)
    ten, twenty = (errors.iloc[:people].sum() / errors.sum() for people in (10, 20))
    return text + (
        f"\n\n{(~everyone['right']).sum()} images are wrong; of {errors.sum()} of them the person is known. "
        f"{ten:.0%} of these are of ten people, {twenty:.0%} of twenty, and of {(errors == 0).sum()} of the "
        f"{len(errors)} people none is wrong."
    )


def where_tables(run: Run, name: str = "") -> dict[str, str]:
    """Return the tables of how well Grad-CAM finds the tumours, also while the weights are shuffled.

    Parameters
    ----------
    run : Run
        Where tumours are known.
    name : str
        What the marks begin with.
    """
    scores = run.scores("explain")
    parts = ["", *(key.removeprefix("located") for key in scores if key.startswith("located_"))]
    rows = [
        [
            part.removeprefix("_") or "all",
            str(scores[f"located{part}"]),
            with_interval(scores, f"pointing{part}"),
            number_with_interval(scores, f"overlap{part}"),
            with_interval(scores, f"border_share{part}"),
        ]
        for part in parts
    ]
    dot, even = "*a dot, a disc in the middle of the image*", "*a map that is the same everywhere*"
    area = scores["tumour_area"]
    centre = with_interval(scores, "pointing_centre"), number_with_interval(scores, "overlap_centre")
    rows.append([dot, "", *centre, ""])
    rows.append([even, "", percent(area), f"{area:.3f}", percent(scores["border_share_even"])])
    better = [number_with_interval(scores, f"{measure}_over_centre") for measure in ("pointing", "overlap")]
    rows.append(["*all, less the dot and the disc on the same images*", "", *better, ""])
    noise = with_interval(scores, "pointing_shuffled"), number_with_interval(scores, "overlap_shuffled")
    rows.append(["*the network, all weights shuffled*", "", *noise, ""])
    falling = pd.read_csv(io.StringIO(run.text("plots/randomisation.csv")))
    shuffled = [
        [
            str(row["shuffled"]),
            row["layer"],
            f"{row['likeness']:.2f} [{row['likeness_low']:.2f}, {row['likeness_high']:.2f}]",
            with_interval(row, "pointing"),
            number_with_interval(row, "overlap"),
        ]
        for row in falling.to_dict("records")
    ]
    return {
        f"{name}where": table(["maps", "tumour known", "pointing game", "overlap", "border share"], rows),
        f"{name}shuffled": table(
            ["layers shuffled", "the last of them", "likeness", "pointing game", "overlap"], shuffled
        ),
    }


def ladder_table() -> str:
    """Return the README's ladder, or nothing where the study has not run."""
    file = PROJECT / "plots/study/ladder.csv"
    if not file.exists():
        return ""
    rungs = pd.read_csv(file)

    def cell(rung: str, recipe: str, measured_on: str) -> str:
        found = rungs[
            (rungs["rung"] == rung) & (rungs["recipe"] == recipe) & (rungs["measured_on"] == measured_on)
        ]
        if found.empty:
            return ABSENT
        row = found.iloc[0]
        return of_accuracy({"accuracy": row["mean"], "low": row["low"], "high": row["high"]}) + (
            f" ({row['repeats']} runs)" if row["repeats"] > 1 else ""
        )

    whole = "all test images"
    columns = [("muon", whole), ("muon", "distinct"), ("cnn3", whole), ("baseline border", whole)]
    rows = [[text, *(cell(rung, *column) for column in columns)] for rung, text in LADDER.items()]
    return table(
        [
            "tested on",
            "default network",
            "distinct images",
            "the seed's cnn3",
            "a forest that sees the border only",
        ],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pages", description="Write the figures into the pages"
    )
    parser.add_argument("--official", metavar="NAME", help="experiment with split.protocol=official")
    parser.add_argument("--where", metavar="NAME", help="experiment with explain.boxes")
    parser.add_argument("--folds", metavar="NAME", nargs="+", help="experiments, one a fold")
    parser.add_argument("--demo", action="store_true", help="the tables of `make demo`, which has run")
    arguments = parser.parse_args()
    tables = run_tables(Run()) | {"ladder": ladder_table()}
    if arguments.demo and not (PROJECT / "demo/metrics/explain.json").exists():
        sys.exit("error: --demo: run make demo first, which makes the tables' figures in demo/")
    if arguments.demo:
        tables |= where_tables(Run(folder=PROJECT / "demo"), "phantoms-")
    for name, make in (
        (arguments.official, lambda run: two_columns(Run(), run)),
        (arguments.where, where_tables),
    ):
        try:
            tables |= make(Run(name)) if name else {}
        except (DvcException, KeyError) as error:
            sys.exit(f"error: {name} is no experiment with these figures: {error}")
    try:
        tables |= {"folds": folds_table(arguments.folds)} if arguments.folds else {}
    except DvcException as error:
        sys.exit(f"error: --folds: {error}")
    pages = {PROJECT / name: (PROJECT / name).read_text(encoding="utf-8") for name in PAGES}
    if homeless := [mark for mark in tables if not any(f"<!-- {mark} -->" in page for page in pages.values())]:
        sys.exit(f"error: no page has the marks of {', '.join(homeless)}")
    for file in pages:
        fill_file(file, tables)


if __name__ == "__main__":
    run_script(main)
