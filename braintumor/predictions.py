"""What is kept of each test image: what it is, what training has seen of it, what the network says."""

import numpy as np
import pandas as pd

from braintumor.tables import TEST, TRAIN, VALIDATION


def mark_seen(split: pd.DataFrame) -> pd.DataFrame:
    """Return the test rows of a split with what training has seen of them.

    Parameters
    ----------
    split : DataFrame with columns copy_group, patient and subset

    Returns
    -------
    DataFrame without the column subset
        And with ``copied`` (there is a copy among the images that trained or validated) and ``patient_seen`` (the
        patient is known, by a copy too, and has one there).
    """
    person = split["patient"].fillna(split.groupby("copy_group")["patient"].transform("first"))
    seen, testing = split["subset"].isin([TRAIN, VALIDATION]), split["subset"] == TEST
    tested = split[testing].drop(columns="subset").reset_index(drop=True)
    tested["copied"] = tested["copy_group"].isin(split["copy_group"][seen])
    tested["patient_seen"] = person[testing].isin(person[seen].dropna()).to_numpy()
    return tested


def add_probabilities(
    tested: pd.DataFrame, classes: list[str], probabilities: np.ndarray, calibrated: np.ndarray
) -> pd.DataFrame:
    """Add the predicted class and the probabilities, to six significant digits, so that small ones survive.

    Parameters
    ----------
    tested : DataFrame
        One row per image.
    classes : list of str
    probabilities, calibrated : ndarray of shape (len(tested), classes)

    Returns
    -------
    DataFrame
        With the columns prediction (the class of the highest probability), ``probability_<class>`` and
        ``calibrated_<class>`` before copied and patient_seen.
    """
    added = {"prediction": [classes[i] for i in probabilities.argmax(1)]}
    for kind, values in (("probability", probabilities), ("calibrated", calibrated)):
        for i, name in enumerate(classes):
            added[f"{kind}_{name}"] = [float(f"{value:.6g}") for value in values[:, i]]
    seen = ["copied", "patient_seen"]
    parts = [tested.drop(columns=seen), pd.DataFrame(added, index=tested.index), tested[seen]]
    return pd.concat(parts, axis=1)
