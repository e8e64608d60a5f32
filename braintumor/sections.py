"""The sections of the report below its first screen: what each one shows, from the results of a run."""

from typing import Any

import numpy as np
import pandas as pd

from braintumor import charts
from braintumor.manifest import contradictory
from braintumor.params import Params
from braintumor.plots import evenly, overlay
from braintumor.results import ABSENT, Results, interval_text, number_with_interval, percent, with_interval
from braintumor.tables import TEST, TRAIN, UNUSED, VALIDATION


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
        "contradictory": data["contradictory_copy_groups"],
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
    chosen = pairs.iloc[evenly(len(pairs), most)]
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
    groups = []
    for group in contradictory(table, "copy_group")[:most]:
        ones = table[table["copy_group"] == group].drop_duplicates("class")
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

    def bounded(row: pd.Series, *columns: str) -> str:
        return interval_text(*row[list(columns)])

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
            "logits; it changes no class. Above 1 the network was too sure of itself on them, below 1 too modest."
        ),
        "risk_text": (
            "Risk against coverage: the share that is wrong among the most certain images; "
            f"{with_interval(calibration, 'risk_coverage_90')} of the 90% most certain, "
            f"{with_interval(calibration, 'risk_coverage_80')} of the 80%."
        ),
        "views": ", ".join(f"{name} {with_interval(test, f'accuracy_{name}')}" for name in views),
        "missed": missed,
    }


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
            "Less a map of the image's centre on the same images: pointing "
            f"{number_with_interval(explain, 'pointing_over_centre')}, overlap "
            f"{number_with_interval(explain, 'overlap_over_centre')} (intervals over groups).",
        ]
    else:
        notes.append(
            "With all weights shuffled the maps' rank correlation with the trained network's is "
            f"{number_with_interval(explain, 'likeness_shuffled')}; 1 would be the same map."
        )
    return {"header": ["maps of", *measures.values()], "rows": rows, "note": " ".join(notes)}


def deployed_rows(export: dict[str, float | int], latency: dict | None) -> list[list[str]]:
    """Return what is known of the exported model: size, distance from torch, what it tells apart, and times."""
    rows = [
        ["size of model.onnx", f"{export['onnx_bytes'] / 1e6:.2f} MB"],
        [
            "largest difference from torch on the test images, of outputs over 1 as a share",
            f"{export['onnx_max_difference']:.1e}",
        ],
        ["test images marked as unlike the training images", with_interval(export, "novelty_flagged_test")],
    ]
    for runtime, took in latency["milliseconds"].items() if latency else ():
        times = f"{took['one']:.1f} ms for one image, {took['each_of_64']:.1f} ms for each of 64"
        rows.append([f"time in {runtime}", f"{times} ({latency['device']})"])
    told = [name for name in export if name.startswith("novelty_auroc_") and f"{name}_low" in export]
    for name in told:
        kind = name.removeprefix("novelty_auroc_")
        area, marked = number_with_interval(export, name), with_interval(export, f"novelty_flagged_{kind}")
        rows.append([f"told from test images: {kind}", f"AUROC {area}, {marked} marked"])
    return rows
