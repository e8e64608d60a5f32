"""The manifest: one row per usable image, with what its file says, its copies, its patient and its group."""

import hashlib
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from braintumor.copies import DECODED, find_copies, join_groups, signature
from braintumor.errors import UserError
from braintumor.images import UnreadableImageError, decode_image
from braintumor.tables import FOLDERS

# What the metrics put behind a score's name, where a class stands as well: pointing_right, sensitivity_low.
RESERVED = "low", "high", "right", "wrong", "centre", "shuffled", "even"


def check_classes(classes: Iterable[str]) -> None:
    """Raise a UserError if the metrics of a class would have the name of other metrics."""
    known = set(classes)
    for name in sorted(known):
        start, _, end = name.rpartition("_")
        if name in RESERVED or (end in RESERVED and start in known):
            raise UserError(
                f"audit: a class cannot be called {name}, as the metrics name other scores so: rename its folder, "
                f"to {name}_class for example"
            )


def inspect_image(raw: Path, path: str, max_pixels: int) -> tuple[dict, np.ndarray]:
    """Read one image: its row of the manifest and its signature.

    Mean and deviation are those of the grey values (0 to 255) as decoded for the signature, that is of block
    means where a JPEG is larger than twice 224 pixels.
    """
    content = (raw / path).read_bytes()
    image = decode_image(content, at_least=DECODED, max_pixels=max_pixels)
    folder, label, _ = path.split("/")
    row = {
        "path": path,
        "folder": folder,
        "class": label,
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "format": image.format,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "mean": round(float(image.grey.mean()), 3),
        "deviation": round(float(image.grey.std()), 3),
    }
    return row, signature(image.grey)


def inspect_images(
    raw: Path, paths: list[str], max_pixels: int, workers: int
) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Read every image once.

    Parameters
    ----------
    raw : Path
        Folder that the paths are relative to.
    paths : list of str
    max_pixels : int
        Larger images are not decoded.
    workers : int
        Threads; Pillow and hashlib let go of the interpreter while they work.

    Returns
    -------
    table : DataFrame, one row per readable image, in the order of `paths`
    signatures : ndarray of shape (n, 1024), float32
    quarantine : DataFrame with columns path and reason
    """

    def inspect(path: str) -> tuple[dict, np.ndarray] | str:
        try:
            return inspect_image(raw, path, max_pixels)
        except UnreadableImageError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        results = list(tqdm(pool.map(inspect, paths), "reading", len(paths), unit="image", disable=None))
    good = [result for result in results if not isinstance(result, str)]
    bad = [(path, result) for path, result in zip(paths, results, strict=True) if isinstance(result, str)]
    table = pd.DataFrame([row for row, _ in good])
    signatures = np.array([values for _, values in good], np.float32)
    return table, signatures, pd.DataFrame(bad, columns=["path", "reason"])


def read_patients(file: Path, paths: Iterable[str]) -> pd.Series:
    """Read a csv of path and patient; lines that start with # above its header are comments.

    Returns
    -------
    Series of str, one per path, in their order
        Missing where the table does not name the path, or no patient for it.

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column, names an image twice, or names none of the images or one that
        there is not: its patient would be on no side that a split knows of.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            comments = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), lines))
        table = pd.read_csv(file, skiprows=comments, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise UserError(f"audit.patients: {file} cannot be read: {' '.join(str(error).split())}") from None
    if missing := {"path", "patient"} - set(table.columns):
        raise UserError(f"audit.patients: {file} has no column {' nor '.join(sorted(missing))}")
    patients = table.set_index(table["path"].str.strip())["patient"].str.strip()
    if patients.index.has_duplicates:
        raise UserError(f"audit.patients: {file} names {patients.index[patients.index.duplicated()][0]} twice")
    found = patients.replace("", None).reindex(list(paths))
    if found.isna().all():
        raise UserError(
            f"audit.patients: {file} names none of the images; it belongs to other data: set audit.patients to "
            "null, or to data/raw/patients.csv where the data bring their own"
        )
    if len(others := patients.index.difference(found.index)):
        raise UserError(
            f"audit.patients: {file} names {len(others)} images that there are not, first {others[0]}: write the "
            f"paths as {found.index[0]} is, and take away the lines of images that you have left out"
        )
    return found


def add_groups(
    table: pd.DataFrame, signatures: np.ndarray, patients: pd.Series | None, threshold: float
) -> pd.DataFrame:
    """Add to each image its copy group, its nearest neighbour, its patient and its group.

    A group joins what shares a patient or a copy, directly or through others: no split by patient may cut it.

    Parameters
    ----------
    table : DataFrame from `inspect_images`
    signatures : ndarray of shape (n, 1024), float32
    patients : Series of n str, or None
    threshold : float
        Similarity above which two images are copies.
    """
    copy_group, nearest, similarity = find_copies(signatures, table["sha256"].tolist(), threshold)
    patient = [None] * len(table) if patients is None else patients.where(patients.notna(), None).tolist()
    paths = table["path"].to_numpy()
    return table.assign(
        copy_group=copy_group,
        similarity=np.where(nearest < 0, np.nan, similarity.astype(float).round(4)),
        nearest=np.where(nearest < 0, "", paths[nearest]),
        patient=pd.Series(patient, dtype=object),
        group=join_groups(copy_group.tolist(), patient),
    )


def count_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each class in each folder: columns folder, class, label (of a bar) and images."""
    counts = table.groupby(["folder", "class"], sort=True).size().reset_index(name="images")
    counts.insert(2, "label", counts["folder"] + " " + counts["class"])
    return counts


def contradictory(table: pd.DataFrame, column: str) -> list[int]:
    """Return the groups of a column that hold images of more than one class."""
    classes = table.groupby(column)["class"].nunique()
    return classes.index[classes > 1].tolist()


def summarise(table: pd.DataFrame, quarantined: int) -> dict[str, int | float]:
    """Count what the manifest says, as flat metrics.

    Parameters
    ----------
    table : DataFrame, the manifest
    quarantined : int
        Images that could not be read.
    """
    in_training, in_testing = (table["folder"] == folder for folder in FOLDERS)
    metrics: dict[str, int | float] = {"images": len(table), "quarantined_images": quarantined}
    for folder, rows in (("training", table[in_training]), ("testing", table[in_testing])):
        metrics[f"{folder}_images"] = len(rows)
        for side in ("width", "height"):
            metrics[f"{folder}_{side}_mean"] = round(float(rows[side].mean()), 2) if len(rows) else 0.0
    same_bytes = table.groupby("sha256")["path"].transform("size") > 1
    copied = table["copy_group"].isin(table["copy_group"][in_training])
    patients = table["patient"].dropna()
    tested, trained = (set(patients[rows[patients.index]]) for rows in (in_testing, in_training))
    metrics |= {
        "identical_groups": int(table["sha256"][same_bytes].nunique()),
        "identical_images": int(same_bytes.sum()),
        "identical_testing_images": int(table["sha256"][in_testing].isin(table["sha256"][in_training]).sum()),
        "distinct_images": int(table["copy_group"].nunique()),
        "single_images": int((table["copy_group"].value_counts() == 1).sum()),
        "largest_copy_group": int(table["copy_group"].value_counts().max()),
        "copied_testing_images": int(copied[in_testing].sum()),
        "contradictory_copy_groups": len(contradictory(table, "copy_group")),
        "patients": int(patients.nunique()),
        "images_of_known_patients": len(patients),
        "patients_in_testing": len(tested),
        "patients_in_both": len(tested & trained),
        "groups": int(table["group"].nunique()),
        "contradictory_groups": len(contradictory(table, "group")),
    }
    return metrics


def describe(summary: dict[str, int | float]) -> str:
    """Say the most important counts of `summarise`, in one line."""
    parts = [
        f"{summary['images']} images, {summary['distinct_images']} distinct, "
        f"{summary['quarantined_images']} unreadable",
        f"groups of copies with contradictory labels: {summary['contradictory_copy_groups']}",
        f"patient known for {summary['images_of_known_patients']} images",
    ]
    if summary["testing_images"]:
        parts.append(
            f"in Testing, {summary['copied_testing_images']} of {summary['testing_images']} images are copies of "
            f"one in Training and {summary['patients_in_both']} of {summary['patients_in_testing']} known "
            "patients are in Training as well"
        )
    return "; ".join(parts)
