"""The report: one page of HTML and a model card, from the tables and pictures of the stages before it."""

import platform
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from braintumor import charts
from braintumor.params import Params
from braintumor.plots import overlay
from braintumor.tables import TEST, TRAIN, UNUSED, VALIDATION

ABSENT = "\u2013"
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


@dataclass(frozen=True)
class Results:
    """All that the report is made of, as the stages before it wrote it.

    Attributes
    ----------
    manifest, quarantine, split : DataFrame
    images : ndarray of shape (n, size, size), uint8
        Row i belongs to row i of `manifest` and `split`.
    predictions, missed : DataFrame
    saliency : ndarray of shape (m, size, size), uint8
        Row i belongs to row i of `explained`.
    explained : DataFrame
    tables : dict of DataFrame
        curves, lr_range, subsets, class_scores, subgroups, baselines, reliability, risk_coverage, roc, pr.
    metrics : dict of dict
        data, train, test, calibration, baselines, explain, export.
    sheets : list of (name, bytes)
        PNG pictures of the stage explain.
    overview : bytes
        PNG picture of classes and sizes.
    description : dict
        models/model.json.
    seeds : DataFrame or None
        metrics/seeds.csv, where these are the images that it was measured on.
    checksums : dict of str
        SHA-256 by file.
    commit : str
    command : str
        What repeats it.
    """

    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    split: pd.DataFrame
    images: np.ndarray
    predictions: pd.DataFrame
    missed: pd.DataFrame
    saliency: np.ndarray
    explained: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, float | int]]
    sheets: list[tuple[str, bytes]]
    overview: bytes
    description: dict
    seeds: pd.DataFrame | None
    checksums: dict[str, str]
    commit: str
    command: str

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.description["classes"])


def percent(value: float) -> str:
    """Write a share as a percentage with one decimal, and never as all where something is left."""
    text = f"{100 * value:.1f}%"
    if text == "100.0%":
        return "100%" if value == 1 else "> 99.9%"
    return text


def with_interval(scores: dict[str, float | int], name: str) -> str:
    """Write a share with its 95% interval, such as ``95.6% [94.4, 96.5]``."""
    if scores.get(name) is None:
        return ABSENT
    low, high = (f"{100 * scores[f'{name}_{end}']:.1f}" for end in ("low", "high"))
    return f"{percent(scores[name])} [{low}, {high}]"


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
        detection=detection(results),
        charts=draw_charts(results),
        environment=environment_rows(results, params),
        checksums=list(results.checksums.items()),
        command=results.command,
        deployed=deployed_rows(results.metrics["export"]),
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
    if not data["testing_images"]:
        protocol = "grouped"  # what the split does without a folder Testing
    if not data["patients"]:
        by = "copy"
    label, sentence = PROTOCOLS[protocol, by if protocol == "grouped" else None]
    if protocol == "grouped":
        sentence += f" This is fold {split.fold} of {split.folds}."
    if protocol == "source":
        sentence += f" Here: {split.source}."
    return label, sentence


def answer(results: Results, params: Params) -> dict[str, Any]:
    """Return the figures of the first screen."""
    test, baselines = results.metrics["test"], results.tables["baselines"]
    label, sentence = protocol_of(results, params)
    blind = baselines[~baselines["baseline"].isin(["network", "network_border"])]
    best = blind.loc[blind["accuracy"].idxmax()]
    asked = "a person that it has never seen" if label == "New people" else "an image that it has not seen"
    bounded = test["errors"] and "accuracy_groups_low" in test
    return {
        "question": f"How often is the network right about {asked}?",
        "label": label,
        "protocol": sentence,
        "baseline": f"What can be guessed from what should not matter: {percent(best['accuracy'])} "
        f"({best['description']}).",
        "accuracy": test["accuracy"],
        "low": test["accuracy_low"],
        "high": test["accuracy_high"],
        "images": test["images"],
        "distinct": test["accuracy_distinct"],
        "distinct_low": test["accuracy_distinct_low"],
        "distinct_high": test["accuracy_distinct_high"],
        "images_distinct": test["images_distinct"],
        "groups_low": test["accuracy_groups_low"] if bounded else None,
        "groups_high": test["accuracy_groups_high"] if bounded else None,
    }


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
        without = with_interval(test, "accuracy_copy_free")
        return {
            "label": "Without the copies",
            "number": percent(test["accuracy_copy_free"]) if "accuracy_copy_free" in test else ABSENT,
            "lines": [f"{without} of {test['images_copy_free']} test images have no copy in training.", *worth],
        }
    label = "What the official split would claim"
    rows = None if results.seeds is None else results.seeds.query("protocol == 'official'")
    if rows is None or rows.empty:
        lines = ["Not measured on these images: dvc exp run -S split.protocol=official"]
        return {"label": label, "number": "?", "lines": [*lines, *worth]}
    spread = f" ± {100 * rows['accuracy'].std():.1f}" if len(rows) > 1 else ""
    line = f"mean of {len(rows)} seeds{spread}" if len(rows) > 1 else "one seed"
    return {
        "label": label,
        "number": percent(rows["accuracy"].mean()),
        "lines": [f"The same recipe, trained on Training, tested on Testing: {line} (metrics/seeds.csv).", *worth],
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


def detection(results: Results) -> dict[str, Any] | None:
    """Return tumour against none, where one class is none."""
    test = results.metrics["test"]
    if "tumour_sensitivity" not in test:
        return None
    found = {
        f"{name}{end}": test.get(f"tumour_{name}{end}")
        for name in ("sensitivity", "specificity")
        for end in ("", "_low", "_high")
    }
    counts = {"tumours": test["tumours"], "missed": test["tumours_missed"], "false_alarms": test["false_alarms"]}
    return found | counts


def draw_charts(results: Results) -> dict[str, Any]:
    """Draw all charts of the page."""
    tables = results.tables
    scores = tables["class_scores"].set_index("class")
    loss, accuracy = (charts.learning_curves(tables["curves"], score) for score in ("loss", "accuracy"))
    return {
        "training": [
            {"svg": loss, "caption": "Loss. Validation has neither augmentation nor dropout nor label smoothing."},
            {"svg": accuracy, "caption": "Accuracy. The epoch with the best validation is kept."},
            {
                "svg": charts.lr_range(tables["lr_range"]),
                "caption": "The loss while the learning rate rises from batch to batch.",
            },
        ],
        "subsets": {"svg": charts.accuracies(tables["subsets"], "subset", "Accuracy on parts of the test set")},
        "baselines": {"svg": charts.accuracies(tables["baselines"], "baseline", "Shortcut baselines")},
        "roc": {
            "svg": charts.class_curves(
                tables["roc"], "false_positive_rate", "true_positive_rate", "ROC", dict(scores["auc"].dropna())
            )
        },
        "pr": {
            "svg": charts.class_curves(
                tables["pr"],
                "recall",
                "precision",
                "Precision and recall",
                dict(scores["average_precision"].dropna()),
            )
        },
        "reliability": {"svg": charts.reliability(tables["reliability"])},
        "risk": {"svg": charts.risk(tables["risk_coverage"])},
    }


def data_facts(results: Results) -> dict[str, Any]:
    """Return counts, the flow of exclusions, sizes, copies, patients and contradictory labels."""
    manifest, split, data = results.manifest, results.split, results.metrics["data"]
    subsets = [TRAIN, VALIDATION, TEST, UNUSED]
    counts = pd.crosstab(split["class"], split["subset"]).reindex(columns=subsets, fill_value=0)
    if not counts[UNUSED].any():
        counts = counts.drop(columns=UNUSED)
    counts["all"] = counts.sum(axis=1)
    rows = [[name, *map(int, row)] for name, row in zip(counts.index, counts.to_numpy(), strict=True)]
    rows.append(["all", *map(int, counts.sum())])
    unused = int((split["subset"] == UNUSED).sum())
    found = data["images"] + data["quarantined_images"]
    flow = [
        {"number": found, "text": "image files found", "out": None},
        {"number": data["images"], "text": "can be read", "out": f"{data['quarantined_images']} cannot"},
        {
            "number": data["distinct_images"],
            "text": "distinct pictures",
            "out": f"{data['images'] - data['distinct_images']} more are copies; all stay, together",
        },
        {
            "number": data["groups"],
            "text": "groups of one patient or one picture",
            "out": f"{data['patients']} known patients",
        },
        {
            "number": int((split["subset"] == TRAIN).sum()),
            "text": "images train",
            "out": f"{unused} are left out" if unused else None,
        },
        {"number": int((split["subset"] == VALIDATION).sum()), "text": "images choose the epoch", "out": None},
        {"number": int((split["subset"] == TEST).sum()), "text": "images test", "out": None},
    ]
    sides = [
        [f"{side} (pixels)", *(f"{manifest[side].agg(how):.0f}" for how in ("min", "median", "max", "mean"))]
        for side in ("width", "height")
    ]
    return {
        "counts": {"header": ["class", *counts.columns], "rows": rows},
        "flow": flow,
        "sizes": sides,
        "overview": {
            "uri": charts.file_uri(results.overview, "png"),
            "alt": "Bars of the images per class and folder, and a scatter of widths and heights",
            "caption": "Images per class and folder as they came, and their sizes.",
        },
        "copies_text": (
            "Two images are copies when their small grey versions, mirrored or not, are nearly the same. The "
            f"commonest picture is there {data['largest_copy_group']} times; comparing bytes alone finds "
            f"{data['identical_testing_images']} of the {data['copied_testing_images']} test files with a copy in "
            f"Training. The patient is known for {data['images_of_known_patients']} of {data['images']} images."
        ),
        "pairs": copy_pairs(results),
        "contradictions": contradictions(results),
        "quarantined": results.quarantine[["path", "reason"]].to_numpy().tolist(),
    }


def copy_pairs(results: Results, most: int = 8) -> list[dict[str, Any]]:
    """Choose pairs of nearest images that are copies, across the folders where there are such, evenly."""
    table = results.manifest.reset_index(drop=True)
    rows = pd.Series(table.index, index=table["path"])
    nearest = table["nearest"].map(rows)
    known = nearest.notna()
    copied = table[known & (table["copy_group"] == table["copy_group"].reindex(nearest).to_numpy())]
    crossing = copied[copied["path"].str.startswith("Testing") & copied["nearest"].str.startswith("Training")]
    pairs = crossing if len(crossing) else copied
    chosen = pairs.iloc[np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)]
    return [
        {
            "left": charts.data_uri(results.images[i]),
            "right": charts.data_uri(results.images[rows[row["nearest"]]]),
            "left_name": row["path"],
            "right_name": row["nearest"],
            "similarity": f"{row['similarity']:.4f}",
        }
        for i, row in chosen.iterrows()
    ]


def contradictions(results: Results, most: int = 12) -> list[list[dict[str, str]]]:
    """Return the groups of copies with more than one class, each with one image of every class."""
    table = results.manifest.reset_index(drop=True)
    many = table.groupby("copy_group")["class"].transform("nunique") > 1
    groups = []
    for _, members in list(table[many].groupby("copy_group"))[:most]:
        ones = members.drop_duplicates("class")
        groups.append(
            [{"uri": charts.data_uri(results.images[i]), "name": path} for i, path in ones["path"].items()]
        )
    return groups


def training_facts(results: Results) -> dict[str, str]:
    """Say what was trained, in a sentence or two."""
    train = results.metrics["train"]
    return {
        "training_text": (
            f"{network_text(results)} {train['epochs']} epochs; the weights are those of epoch "
            f"{train['best_epoch']}, the best by validation accuracy ({percent(train['validation_accuracy'])})."
        )
    }


def network_text(results: Results) -> str:
    """Say what the network is."""
    architecture, preprocess = results.description["architecture"], results.description["preprocess"]
    blocks = (
        f", blocks of {', '.join(map(str, architecture['channels']))} channels" if architecture["channels"] else ""
    )
    return (
        f"{architecture['model']}{blocks}, {results.metrics['train']['parameters']:,} parameters, for grey images "
        f"of {preprocess['size']} x {preprocess['size']} pixels."
    )


# What a score is called, and the metric whose bounds come from the bootstrap.
NAMES = {
    "accuracy": ("accuracy", "accuracy_groups"),
    "balanced_accuracy": ("balanced accuracy", "balanced_accuracy"),
    "f1": ("macro F1", "f1"),
    "precision": ("macro precision", "precision"),
    "recall": ("macro recall", "recall"),
    "mcc": ("Matthews correlation (MCC)", "mcc"),
    "kappa": ("Cohen's kappa", "kappa"),
    "auc": ("AUC, one against the rest", "auc"),
    "average_precision": ("average precision", "average_precision"),
}
CALIBRATED = {
    "ece": "expected calibration error (ECE)",
    "brier": "Brier score",
    "log_loss": "log-loss",
    "confident_errors": "share of errors made with more than 90% confidence",
}


def evaluation_facts(results: Results, negative: str | None) -> dict[str, Any]:
    """Return the tables of the evaluation."""
    test, calibration, tables = results.metrics["test"], results.metrics["calibration"], results.tables

    def bounded(row: pd.Series, name: str, low: str, high: str) -> str:
        if pd.isna(row[name]):
            return ABSENT
        return f"{percent(row[name])} [{100 * row[low]:.1f}, {100 * row[high]:.1f}]"

    subsets = [
        [
            row["subset"].replace("_", " "),
            row["description"],
            int(row["units"]),
            bounded(row, "accuracy", "low", "high"),
        ]
        for _, row in tables["subsets"].iterrows()
    ]
    detects = "detection" in tables["baselines"] and tables["baselines"]["detection"].notna().any()
    baselines = [
        [row["baseline"].replace("_", " "), row["description"], bounded(row, "accuracy", "low", "high")]
        + ([bounded(row, "detection", "detection_low", "detection_high")] if detects else [])
        for _, row in tables["baselines"].iterrows()
    ]
    columns = ["sensitivity", "specificity", "ppv", "npv", "f1", "auc", "average_precision"]
    by_class = [
        [
            row["class"],
            int(row["images"]),
            *(bounded(row, name, f"{name}_low", f"{name}_high") for name in columns[:4]),
            *(number_with_interval(row.dropna(), name) for name in columns[4:]),
        ]
        for _, row in tables["class_scores"].iterrows()
    ]
    subgroups = [
        [
            row["subgroup"],
            row["value"],
            int(row["images"]),
            f"{percent(row['accuracy'])} (too few for an interval)"
            if row["too_small"]
            else bounded(row, "accuracy", "low", "high"),
        ]
        for _, row in tables["subgroups"].iterrows()
    ]
    scores = [
        [text, f"{test[name]:.3f}", f"{test[f'{bounds}_low']:.3f} to {test[f'{bounds}_high']:.3f}"]
        for name, (text, bounds) in NAMES.items()
        if test.get(name) is not None and f"{bounds}_low" in test
    ]
    calibrated = [
        [text, *(number_with_interval(calibration, f"{name}_{when}") for when in ("before", "after"))]
        for name, text in CALIBRATED.items()
        if f"{name}_before" in calibration
    ]
    views = [name for name in ("flips", "scales", "flips_scales") if f"accuracy_{name}" in test]
    missing = results.predictions.set_index("path", drop=False).loc[results.missed["path"]]
    missed = [
        [row["path"], row["class"], percent(row[f"calibrated_{negative}"]), row["patient"] or "unknown"]
        for _, row in missing.fillna({"patient": ""}).iterrows()
    ]
    return {
        "subsets": subsets,
        "baselines": {
            "header": ["baseline", "sees", "right"] + (["tumour or none: right"] if detects else []),
            "rows": baselines,
        },
        "scores": scores,
        "class_scores": {
            "header": [
                "class",
                "images",
                "sensitivity",
                "specificity",
                "PPV",
                "NPV",
                "F1",
                "AUC",
                "average precision",
            ],
            "rows": by_class,
        },
        "subgroups": subgroups,
        "calibration": calibrated,
        "calibration_text": (
            f"A temperature of {calibration['temperature']:.3f}, fitted on validation images only, divides the "
            "logits; it changes no class. Above 1 the network was too sure of itself on them."
        ),
        "views": ", ".join(f"{name} {with_interval(test, f'accuracy_{name}')}" for name in views),
        "missed": missed,
    }


def number_with_interval(scores: dict[str, float | int], name: str) -> str:
    """Write a number with its interval where it has one, such as ``0.077 [0.063, 0.098]``."""
    if scores.get(name) is None:
        return ABSENT
    text = f"{scores[name]:.3f}"
    if f"{name}_low" in scores:
        text += f" [{scores[f'{name}_low']:.3f}, {scores[f'{name}_high']:.3f}]"
    return text


def error_facts(results: Results, most: int) -> dict[str, Any]:
    """Return the gallery of wrong images, the most confident first.

    Parameters
    ----------
    results : Results
    most : int
        Further ones are counted, not shown.
    """
    predictions = results.predictions.set_index("path")
    rows = pd.Series(np.arange(len(results.manifest)), index=results.manifest["path"])
    classes = results.classes
    gallery = []
    for i, one in results.explained[~results.explained["right"]].iterrows():
        row = predictions.loc[one["path"]]
        image, near = results.images[one["row"]], rows[one["nearest"]]
        probabilities = [(name, float(row[f"calibrated_{name}"])) for name in classes]
        gallery.append(
            {
                "name": one["path"],
                "actual": one["class"],
                "prediction": one["prediction"],
                "patient": row["patient"] if isinstance(row["patient"], str) else None,
                "confidence": round(max(p for _, p in probabilities), 4),
                "similarity": f"{one['nearest_similarity']:.3f}",
                "image": charts.data_uri(image),
                "overlay": charts.data_uri(overlay(image, results.saliency[i])),
                "near": charts.data_uri(results.images[near]),
                "near_name": one["nearest"],
                "near_class": results.manifest["class"].iloc[near],
                "probabilities": probabilities,
            }
        )
    gallery.sort(key=lambda one: (-one["confidence"], one["name"]))
    left_out = len(gallery) - most
    note = (
        f"{left_out} more are left out here (report.gallery); data/saliency.csv lists them."
        if left_out > 0
        else ""
    )
    return {"gallery": gallery[:most], "gallery_note": note}


# Names and captions of the stage explain's pictures; one that is not here is shown with its name.
SHEETS = {
    "gradcam_right": "Grad-CAM on right images: where the network looked for the class.",
    "randomisation": "What is left of the maps as the weights are shuffled layer by layer, from the last.",
    "filters": "The filters of the first layer.",
    "augmentation": "Training images before and after augmentation.",
    "dropout_sums": "Dropout: the distribution of a layer's sum for several probabilities.",
    "dropout_image": "Dropout on an image: single values, and whole channels; at a half where none is set.",
    "layers": "What each layer makes of one image.",
}


def saliency_facts(results: Results, params: Params) -> dict[str, Any]:
    """Return the measured saliency and the pictures of the stage explain, but for the wrong images."""
    explain = results.metrics["explain"]
    order = list(SHEETS)

    def place(name: str) -> tuple[int, str]:
        known = [i for i, start in enumerate(order) if name.startswith(start)]
        return (known[0] if known else len(order), name)

    sheets = []
    for name, content in sorted(results.sheets, key=lambda one: place(one[0])):
        if name.startswith("gradcam_errors"):
            continue  # the gallery has them
        caption = next((text for start, text in SHEETS.items() if name.startswith(start)), name)
        subject = name.removeprefix("layers_") if name.startswith("layers_") else ""
        caption = f"{caption[:-1]} of the class {subject}." if subject else caption
        folded = name.startswith("layers_")
        sheets.append(
            {"folded": folded, "uri": charts.file_uri(content, "png"), "alt": caption, "caption": caption}
        )
    return {
        "saliency_text": (
            "Grad-CAM (Selvaraju et al. 2017) marks what speaks for the class that the network names. A map that "
            "does not change when the weights are shuffled explains nothing (Adebayo et al. 2018). "
            + (
                f"The tumours' places come from {params.explain.boxes}."
                if params.explain.boxes
                else "Where the tumours lie is not known here, so that only the border's share is measured."
            )
        ),
        "places": saliency_table(explain, results.classes, params.explain.border),
        "sheets": sheets,
    }


def saliency_table(explain: dict[str, float | int], classes: list[str], border: float) -> dict[str, Any]:
    """Return the measures of the maps: of all images, by class, right and wrong, and of maps that know nothing."""
    located = "pointing" in explain
    subjects = {"": "all images", **{f"_{name}": name for name in classes}, "_right": "right", "_wrong": "wrong"}
    subjects |= {
        "_shuffled": "all weights shuffled",
        "_centre": "a map of the image's centre",
        "_even": "an even map",
    }
    measures = {"pointing": "pointing game", "overlap": "overlap (IoU)"} if located else {}
    measures |= {"border_share": "share of the map in the border"}
    rows = []
    for suffix, subject in subjects.items():
        cells = [number_with_interval(explain, f"{name}{suffix}") for name in measures]
        if set(cells) != {ABSENT}:
            rows.append([subject, *cells])
    notes = [f"The border reaches in by {percent(border)} of the image's side; an even map has its area there."]
    if located:
        notes += [
            "Pointing game: is the map's peak inside the tumour? Overlap: at the best of all thresholds.",
            f"{explain['located']} test images have a known tumour, on average {percent(explain['tumour_area'])} "
            "of the image.",
        ]
    return {"header": ["maps of", *measures.values()], "rows": rows, "note": " ".join(notes)}


def deployed_rows(export: dict[str, float | int]) -> list[list[str]]:
    """Return what is known of the exported model: its size, how near it is to torch, and what it tells apart."""
    rows = [
        ["size of model.onnx", f"{export['onnx_bytes'] / 1e6:.2f} MB"],
        ["largest difference from torch on the test images", f"{export['onnx_max_difference']:.1e}"],
        ["test images marked as unlike the training images", percent(export["novelty_flagged_test"])],
    ]
    kinds = [name.removeprefix("novelty_auroc_") for name in export if name.startswith("novelty_auroc_")]
    for kind in kinds:
        area, marked = export[f"novelty_auroc_{kind}"], percent(export[f"novelty_flagged_{kind}"])
        rows.append([f"told from test images: {kind}", f"AUROC {area:.3f}, {marked} marked"])
    return rows


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


def limits(results: Results, params: Params) -> list[str]:
    """Say what these figures do not show."""
    data, test = results.metrics["data"], results.metrics["test"]
    sides = results.tables["baselines"].set_index("baseline")["accuracy"]
    found = [
        "One data set and no external test set: nothing here says how it does on images from elsewhere.",
        "Single slices, no volumes, one network, one seed: another seed moves the score, by as much as "
        "metrics/seeds.csv says where it has rows.",
        f"The patient is known for {data['images_of_known_patients']} of {data['images']} images; elsewhere a "
        "group is a group of copies, and two slices of one unknown person may be on both sides.",
    ]
    if "border" in sides:
        found.append(
            f"The border of an image alone gives its class for {percent(sides['border'])} of the test images: "
            "part of any score here is about scanners and sources."
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
    train = results.metrics["train"]
    found = (
        f"; {with_interval(test, 'tumour_sensitivity')} of tumours are called one"
        if "tumour_sensitivity" in test
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
        f"{test['images_distinct']} distinct pictures{found}. 95% intervals.",
        "weaknesses": f"Least sensitive for {weakest['class']} ({percent(weakest['sensitivity'])}). "
        f"The patient is known for {data['images_of_known_patients']} of {data['images']} images only. "
        "Part of the score is about scanners and sources; the report's baselines say how much.",
    }
