"""The report: one page of HTML and a model card, from the tables and pictures of the stages before it."""

import platform
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from braintumor.intervals import wilson_interval
from braintumor.params import Params
from braintumor.results import ABSENT, Results, interval_text, mean_interval, percent, with_interval
from braintumor.sections import (
    data_facts,
    deployed_rows,
    draw_charts,
    error_facts,
    evaluation_facts,
    network_text,
    saliency_facts,
    training_facts,
)
from braintumor.tables import TRAIN, VALIDATION

PACKAGES = (
    "torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "pillow", "captum", "onnxruntime", "dvc",
)  # fmt: skip
SECTIONS = (
    ("answer", "Answer"),
    ("data", "Data"),
    ("training", "Training"),
    ("evaluation", "Evaluation"),
    ("errors", "Errors"),
    ("saliency", "Where it looks"),
    ("use", "Use"),
    ("environment", "Environment"),
    ("card", "Model card"),
    ("limits", "Limits"),
)
# What a protocol tests on: the answer's label, and a sentence.
PROTOCOLS = {
    ("grouped", "patient"): (
        "New people",
        "All images were pooled and cut anew: no known patient and no copy of an image is on both sides.",
    ),
    ("grouped", "copy"): (
        "New pictures",
        "The images were pooled and cut anew: no copy of an image is on both sides. Where several images show one "
        "person, that person may be.",
    ),
    ("official", None): (
        "The official test folder",
        "Tested on the folder Testing as it is, copies of training images and known people included.",
    ),
    ("copy_free", None): (
        "The official test folder, its copies left out of training",
        "Tested on the folder Testing; training images with a copy there were left out. The same people may be on "
        "both sides.",
    ),
    ("source", None): (
        "Images of another source",
        "Tested on images that differ from all training images in what stands for their source.",
    ),
    ("seed", None): (
        "Half of the official test folder",
        "The other half of the folder Testing chose the epoch; copies and known people are on both sides.",
    ),
}


def render_report(results: Results, params: Params) -> tuple[str, str]:
    """Return the page (HTML) and the model card (Markdown).

    Parameters
    ----------
    results : Results
    params : Params
    """
    environment = Environment(
        loader=PackageLoader("braintumor", "page"),
        undefined=StrictUndefined,
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    card = environment.get_template("card.md.jinja").render(card_facts(results, params))
    page = environment.get_template("report.html.jinja")
    style, script = (
        Markup(resources.files("braintumor").joinpath("page", name).read_text(encoding="utf-8"))
        for name in ("style.css", "gallery.js")
    )
    html = page.render(
        title="Brain tumours in MRI slices" if params.data.source != "folder" else "Image classification",
        sections=SECTIONS,
        style=style,
        script=script,
        classes=results.classes,
        answer=answer(results, params),
        claim=claim(results, params),
        confusion=confusion_table(results.predictions, results.classes),
        test=results.metrics["test"],
        detects="tumour_sensitivity" in results.metrics["test"],
        charts=draw_charts(results),
        environment=environment_rows(results, params),
        checksums=list(results.checksums.items()),
        command=results.command,
        deployed=deployed_rows(results.metrics["export"], results.latency),
        params=yaml.safe_dump(params.model_dump(), sort_keys=False),
        card=Markup(MarkdownIt("commonmark", {"html": False}).render(card)),
        limits=limits(results, params),
        **data_facts(results),
        **training_facts(results),
        **evaluation_facts(results, params.evaluate.negative),
        **error_facts(results, params.report.gallery),
        **saliency_facts(results, params),
    )
    return html, f"# Model card\n\n{card}"


def protocol_of(results: Results, params: Params) -> tuple[str, str]:
    """Return the label and the sentence of what was tested, by the protocol and by what is known of the images."""
    split, data = params.split, results.metrics["data"]
    protocol, by = split.protocol, split.group_by
    halved = protocol == "seed"
    if not data["testing_images"] and protocol != "source":
        protocol = "grouped"  # what the split does without a folder Testing
    if not data["patients"]:
        by = "copy"
    label, sentence = PROTOCOLS[protocol, by if protocol == "grouped" else None]
    if protocol == "grouped":
        sentence += f" This is fold {split.fold} of {split.folds}."
        if halved:
            sentence += " The other half of the fold chose the epoch, and shares people and copies with this one."
    if protocol == "source":
        sentence += f" Here: {split.source}."
    return label, sentence


def answer(results: Results, params: Params) -> dict[str, Any]:
    """Return the words of the first screen; its figures are those of metrics/test.json."""
    baselines = results.tables["baselines"]
    label, sentence = protocol_of(results, params)
    blind = baselines[~baselines["baseline"].isin(["network", "network_border"])]
    best = blind.loc[blind["accuracy"].idxmax()]
    asked = "a person that it has never seen" if label == "New people" else "an image that it has not seen"
    return {
        "question": f"How often is the network right about {asked}?",
        "label": label,
        "protocol": sentence,
        "folds": folds_text(results, params),
        "baseline": "What can be guessed from what should not matter: "
        f"{interval_text(*best[['accuracy', 'low', 'high']])} ({best['description']}).",
    }


def folds_text(results: Results, params: Params) -> str:
    """Say what all folds together come to, where metrics/seeds.csv has each of them; nothing else."""
    split = params.split
    if split.protocol != "grouped" or results.seeds is None:
        return ""
    rows = results.seeds.query("protocol == 'grouped' and group_by == @split.group_by")
    if sorted(rows["fold"]) != list(range(split.folds)):
        return ""
    whole, distinct = (interval_text(*mean_interval(rows[name])) for name in ("accuracy", "distinct_accuracy"))
    low, high = (percent(rows["accuracy"].agg(how)) for how in ("min", "max"))
    return (
        f"Over all {split.folds} folds, which test each image once: {whole}, from {low} to {high}; distinct "
        f"pictures {distinct} (Student's t over folds; metrics/seeds.csv)."
    )


def claim(results: Results, params: Params) -> dict[str, Any]:
    """Return what the official split would claim, where it is known, and what that claim is worth."""
    data, test = results.metrics["data"], results.metrics["test"]
    if not data["testing_images"]:
        lines = ["The images came in one folder per class, without a test folder of their own."]
        return {"label": "No official split", "number": ABSENT, "lines": lines}
    worth = [
        f"{data['copied_testing_images']} of the {data['testing_images']} images in Testing are copies of one in "
        f"Training, and {data['patients_in_both']} of the {data['patients_in_testing']} known patients there are "
        "in Training as well."
    ]
    if params.split.protocol == "official":
        without, n = with_interval(test, "accuracy_copy_free"), test["images_copy_free"]
        line = f"Right: {without} of the {n} test images that have no copy in training."
        return {
            "label": "Without the copies",
            "number": percent(test["accuracy_copy_free"]) if n else ABSENT,
            "lines": [line if n else "All test images have a copy in training.", *worth],
        }
    label = "What the official split would claim"
    rows = None if results.seeds is None else results.seeds.query("protocol == 'official'")
    if rows is None or rows.empty:
        lines = [
            "The demo does not measure it."
            if results.command == "make demo"
            else "Not measured on these images: metrics/seeds.csv, which make seeds fills, has no row of them."
        ]
        return {"label": label, "number": "?", "lines": [*lines, *worth]}
    spread = f" ± {100 * rows['accuracy'].std():.1f}" if len(rows) > 1 else ""
    line = f"mean of {len(rows)} seeds{spread}" if len(rows) > 1 else "one seed"
    mean, images = rows["accuracy"].mean(), data["testing_images"]
    low, high = wilson_interval(mean * images, images)
    return {
        "label": label,
        "number": percent(mean),
        "lines": [
            f"{images} test images, 95% interval {percent(low)} to {percent(high)}, as if copies were independent",
            f"The same recipe, trained on Training, tested on Testing: {line} (metrics/seeds.csv).",
            *worth,
        ],
    }


def confusion_table(predictions: pd.DataFrame, classes: list[str]) -> Markup:
    """Return the confusion matrix as a table of HTML, coloured by the share of each actual class."""
    counts = confusion_matrix(predictions["class"], predictions["prediction"], labels=classes)
    names = [Markup.escape(name) for name in classes]
    lines = [
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">',
        "<caption>Confusion matrix: images and share of the actual class</caption>",
        "<thead><tr><th scope='col'>actual \\ called</th>",
        *[f"<th scope='col'>{name}</th>" for name in names],
        "</tr></thead><tbody>",
    ]
    for i, name in enumerate(names):
        lines.append(f"<tr><th scope='row'>{name}</th>")
        for j, count in enumerate(counts[i]):
            share = count / max(1, counts[i].sum())
            kind = ' class="diagonal"' if i == j else ""
            lines.append(f'<td{kind} style="--share:{share:.3f}">{count}<br><small>{percent(share)}</small></td>')
        lines.append("</tr>")
    return Markup("".join([*lines, "</tbody></table></div>"]))


def environment_rows(results: Results, params: Params) -> list[list[str]]:
    """Return versions, device and seeds."""
    trained = results.description.get("environment", {})
    seeds = ", ".join(
        f"{section}.seed {value['seed']}"
        for section, value in params.model_dump().items()
        if isinstance(value, dict) and "seed" in value
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [
        ["commit", results.commit or "outside of git"],
        ["data", data_text(params)],
        *[[f"trained: {name}", str(value)] for name, value in trained.items()],
        ["Python", platform.python_version()],
        ["packages", versions],
        ["seeds", seeds],
    ]


def data_text(params: Params) -> str:
    """Say where the images come from."""
    data = params.data
    return {
        "kaggle": f"Kaggle dataset {data.dataset}, version {data.version}",
        "folder": f"the folder {Path(data.folder or '').name}",
        "phantom": f"slices of {data.phantom_patients} made-up patients, seed {data.seed}: no real person's",
    }[data.source]


def border_tells(baselines: pd.DataFrame) -> bool:
    """Whether images' borders alone tell more than the commonest class does, beyond both intervals.

    Parameters
    ----------
    baselines : DataFrame with columns baseline, low and high
    """
    bounds = baselines.set_index("baseline")[["low", "high"]]
    return "border" in bounds.index and bool(bounds.loc["border", "low"] > bounds.loc["majority", "high"])


def limits(results: Results, params: Params) -> list[str]:
    """Say what these figures do not show."""
    data, test = results.metrics["data"], results.metrics["test"]
    sides = results.tables["baselines"].set_index("baseline")[["accuracy", "low", "high"]]
    found = [
        "One data set and no external test set: nothing here says how it does on images from elsewhere.",
        "Single slices, no volumes, one network, one seed: another seed moves the score, by as much as "
        "metrics/seeds.csv says where it has rows.",
        f"The patient is known for {data['images_of_known_patients']} of {data['images']} images; elsewhere a "
        "group is a group of copies, and two slices of one unknown person may be on both sides.",
    ]
    if "border" in sides.index:
        told = (
            ": part of any score here is about scanners and sources."
            if border_tells(results.tables["baselines"])
            else f", where the commonest class is {interval_text(*sides.loc['majority'])}: that shows nothing."
        )
        found.append(
            f"The border of an image alone gives its class for {interval_text(*sides.loc['border'])} of the "
            f"test images{told}"
        )
    if pictures := data["contradictory_copy_groups"]:
        found.append(f"Pictures with two labels, one of which must be wrong: {pictures}.")
    if test.get("images_copied"):
        found.append(f"{test['images_copied']} of the {test['images']} test images have a copy in training.")
    if params.data.source == "phantom":
        found.insert(0, "The images are drawings: the figures show that the pipeline works, and nothing else.")
    return found


def card_facts(results: Results, params: Params) -> dict[str, Any]:
    """Return what the model card says."""
    test, data = results.metrics["test"], results.metrics["data"]
    label, sentence = protocol_of(results, params)
    scores = results.tables["class_scores"]
    weakest = scores.loc[scores["sensitivity"].idxmin()]
    bounds = ["sensitivity", "sensitivity_low", "sensitivity_high"]
    train = results.metrics["train"]
    found = (
        f"; {with_interval(test, 'tumour_sensitivity')} of tumours are called one"
        if "tumour_sensitivity" in test
        else ""
    )
    folds = folds_text(results, params)
    # As the report says it: one person's images are not independent.
    drawn_anew = (
        f"; with the tested people, or groups of copies, drawn anew the first is "
        f"{100 * test['accuracy_groups_low']:.1f} to {percent(test['accuracy_groups_high'])}"
        if test["errors"]
        else ""
    )
    sources = (
        " Part of the score is about scanners and sources; the report's baselines say how much."
        if border_tells(results.tables["baselines"])
        else ""
    )
    return {
        "network": network_text(results),
        "classes": results.classes,
        "trained_on": f"{int((results.split['subset'] == TRAIN).sum())} images of {data_text(params)}; "
        f"{int((results.split['subset'] == VALIDATION).sum())} others chose epoch {train['best_epoch']} of "
        f"{train['epochs']}.",
        "tested_on": f"{test['images']} images ({label.lower()}). {sentence}",
        "result": f"{with_interval(test, 'accuracy')} right; {with_interval(test, 'accuracy_distinct')} of "
        f"{test['images_distinct']} distinct pictures{found}. 95% intervals{drawn_anew}.{folds and f' {folds}'}",
        "weaknesses": f"Least sensitive in this test for {weakest['class']} ({interval_text(*weakest[bounds])}). "
        f"The patient is known for {data['images_of_known_patients']} of {data['images']} images only.{sources}",
    }
