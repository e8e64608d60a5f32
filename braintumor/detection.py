"""Tumour against none: how many tumours are found, and which are not."""

import numpy as np
import pandas as pd

from braintumor.intervals import named, share


def score_detection(actual: np.ndarray, predicted: np.ndarray, negative: str) -> dict[str, float | int]:
    """Score the question whether there is a tumour, whichever it is.

    Parameters
    ----------
    actual, predicted : ndarray of shape (n,), str
    negative : str
        The class without a tumour.

    Returns
    -------
    dict
        Flat metrics: ``tumour_sensitivity`` is the share of tumours that are taken for some tumour,
        ``tumour_specificity`` that of images without one that are taken for such, both with Wilson's interval and
        left out where there is no image to take a share of.
    """
    tumour, called = actual != negative, predicted != negative
    scores: dict[str, float | int] = {
        "tumours": int(tumour.sum()),
        "tumours_missed": int((tumour & ~called).sum()),
        "false_alarms": int((~tumour & called).sum()),
    }
    for name, among in (("sensitivity", tumour), ("specificity", ~tumour)):
        if among.any():
            scores |= named(f"tumour_{name}", share((tumour == called)[among]))
    return scores


def missed_tumours(predictions: pd.DataFrame, negative: str | None) -> pd.DataFrame:
    """List every tumour that was taken for none, the most certain first.

    Parameters
    ----------
    predictions : DataFrame with columns path, class, prediction, patient and ``probability_<negative>``
    negative : str or None
        The class without a tumour; None gives an empty list.
    """
    if negative is None:
        return predictions.loc[[], ["path", "class", "prediction", "patient"]]
    missed = predictions[(predictions["class"] != negative) & (predictions["prediction"] == negative)]
    certainty = f"probability_{negative}"
    columns = ["path", "class", "prediction", certainty, "patient"]
    return missed[columns].sort_values([certainty, "path"], ascending=[False, True], ignore_index=True)
