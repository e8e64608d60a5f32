"""Cutting images into training, validation and test set without a group in two of them."""

import warnings

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from braintumor.errors import UserError
from braintumor.tables import SUBSETS, TEST, TESTING, TRAIN, UNUSED, VALIDATION


def assign_subsets(
    table: pd.DataFrame,
    protocol: str,
    folds: int,
    fold: int,
    validation_folds: int,
    seed: int,
    source: str = "square512",
) -> np.ndarray:
    """Say for each image which subset it is in.

    Parameters
    ----------
    table : DataFrame with columns folder, class, copy_group and group
        For ``source`` also width, height, mode and patient.
    protocol : {"grouped", "official", "copy_free", "seed", "source"}
        ``grouped`` pools both folders and tests on one of `folds` folds. ``official`` tests on Testing.
        ``copy_free`` does too and leaves out the training images that share a copy group with it. ``seed``
        trains on all of Training, validates on a random half of Testing and tests on the other. Where there is
        no Testing folder, the fold that ``grouped`` would test on stands for it. ``source`` pools both folders
        and tests on the images of one source, see `source_held_out`; images of other sources that share a group
        with a test image are left out.

        What validates is cut off as the test set is: for ``grouped`` and ``source`` no group is in two subsets,
        for ``copy_free`` no copy group is in training and elsewhere, for ``official`` nothing is kept together.
    folds, fold : int
        Number of folds of the pooled images, and which of them tests. For ``source``, fold 0 tests on the images
        that have the property, fold 1 on the others.
    validation_folds : int
        What is left for training is cut into this many folds, the first of which validates.
    seed : int
    source : {"square512", "mode", "patient_known"}
        Property that stands for the source of an image, for ``source``.

    Returns
    -------
    ndarray of shape (n,), str
        ``train``, ``validation``, ``test`` or ``unused``.

    Raises
    ------
    UserError
        If a class has no image in one of the three subsets.
    """
    subset = np.full(len(table), TRAIN, dtype=object)
    testing = (table["folder"] == TESTING).to_numpy()
    if protocol == "grouped" or not testing.any():
        testing = np.zeros(len(table), bool)
        testing[grouped_folds(table, folds, seed)[fold]] = True
    if protocol == "source":
        testing = source_held_out(table, source, folds, fold, validation_folds, seed)
    subset[testing] = TEST
    if protocol in ("copy_free", "source"):
        joined = table["copy_group" if protocol == "copy_free" else "group"]
        subset[joined.isin(joined[testing]).to_numpy() & ~testing] = UNUSED
    if protocol == "seed":
        order = np.random.default_rng(seed).permutation(np.flatnonzero(testing))
        subset[order[: len(order) // 2]] = VALIDATION
    else:
        rest = np.flatnonzero(subset == TRAIN)
        by_protocol = {"copy_free": table["copy_group"]} | dict.fromkeys(("grouped", "source"), table["group"])
        groups = by_protocol.get(protocol, pd.Series(range(len(table)), table.index))
        parts = grouped_folds(table.assign(group=groups).iloc[rest], validation_folds, seed)
        subset[rest[parts[0]]] = VALIDATION
    _check_classes(table, subset)
    return subset


def kept_together(table: pd.DataFrame, group_by: str) -> pd.DataFrame:
    """Return a table whose column ``group`` is what a cut keeps together.

    Parameters
    ----------
    table : DataFrame with columns group and copy_group
    group_by : {"patient", "copy"}
        Its groups as they are, which join patients and copies, or its groups of copies.
    """
    return table.assign(group=table["copy_group"]) if group_by == "copy" else table


def source_held_out(table: pd.DataFrame, source: str, folds: int, fold: int, least: int, seed: int) -> np.ndarray:
    """Say which images test when those of one source are held out.

    The files do not say where an image comes from. What stands for it is that it is 512 x 512 pixels, as
    figshare's are; that it is stored as grey (mode L); or that its patient is known. A class whose other images
    fall into fewer than `least` groups that none of the tested ones share cannot be learnt without the source: it
    is tested on a fold, as ``grouped`` would, whatever the source of its images.

    Parameters
    ----------
    table, source, folds, seed
        See `assign_subsets`.
    fold : {0, 1}
        Whether the images with the property test, or the others.
    least : int

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    UserError
        If there is no such fold, or if no class can be tested on a source of its own.
    """
    if fold > 1:
        raise UserError(f"split.fold: protocol=source has the folds 0 and 1, got {fold}")
    has = {
        "square512": (table["width"] == 512) & (table["height"] == 512),
        "mode": table["mode"] == "L",
        "patient_known": table["patient"].notna(),
    }[source]
    held_out = (has if fold == 0 else ~has).to_numpy()
    testing = np.zeros(len(table), bool)
    testing[grouped_folds(table, folds, seed)[fold]] = True
    free = table["group"].where(~table["group"].isin(table["group"][held_out]))
    learnable = free.groupby(table["class"]).nunique() >= least
    learnable &= pd.Series(held_out, table.index).groupby(table["class"]).any()
    if not learnable.any():
        raise UserError(f"split.source: no class has images of both kinds of {source} in {least} groups apart")
    by_source = table["class"].map(learnable).to_numpy()
    return np.where(by_source, held_out, testing)


def grouped_folds(table: pd.DataFrame, folds: int, seed: int) -> list[np.ndarray]:
    """Cut images into folds of about equal size and class shares, never through a group.

    Parameters
    ----------
    table : DataFrame with columns class and group
    folds, seed : int

    Returns
    -------
    list of `folds` arrays of int
        Positions of each fold's images; every image is in one fold.
    """
    groups = table.groupby("class")["group"].nunique()
    if groups.empty or groups.max() < folds:
        raise UserError(
            f"split: {len(table)} images in {table['group'].nunique()} groups are too few for {folds} folds; "
            "lower split.folds and split.validation_folds, or add images of other groups"
        )
    with warnings.catch_warnings():
        # It warns when a class has fewer images than folds; a class that a subset lacks is an error later on.
        warnings.simplefilter("ignore", UserWarning)
        cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return [part for _, part in cutter.split(table, table["class"], table["group"])]


def _check_classes(table: pd.DataFrame, subset: np.ndarray) -> None:
    counts = pd.crosstab(table["class"], subset)
    for name in SUBSETS:
        for label in counts.index:
            if name not in counts or counts.loc[label, name] == 0:
                rows = table[table["class"] == label]
                raise UserError(
                    f"split: class {label} has no image in the {name} set; its {len(rows)} images in "
                    f"{rows['group'].nunique()} groups need a lower split.folds or split.validation_folds, "
                    "another split.protocol or more groups"
                )


def describe_subsets(split: pd.DataFrame) -> str:
    """Count images by class and subset, as a table to print."""
    counts = pd.crosstab(split["class"], split["subset"])
    counts = counts[[name for name in (*SUBSETS, UNUSED) if name in counts]]
    counts["all"] = counts.sum(axis=1)
    return pd.concat([counts, counts.sum().to_frame("all").T.rename_axis("class")]).to_string()
