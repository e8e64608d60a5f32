"""A trained network on one subset of a split."""

import numpy as np
import pandas as pd
import torch

from braintumor.batches import Batches
from braintumor.errors import UserError
from braintumor.weights import Description


def subset_batches(
    table: pd.DataFrame,
    images: np.ndarray,
    subset: str,
    described: Description,
    batch_size: int,
    device: torch.device,
) -> Batches:
    """Make batches of the images of a subset, in their order, normalised as the network wants them.

    Parameters
    ----------
    table : DataFrame with columns class and subset
    images : ndarray of shape (len(table), size, size), uint8
    subset : str
    described : Description
        Of the network.
    batch_size : int
    device : torch.device

    Raises
    ------
    UserError
        If the table's classes are not the network's.
    """
    found = sorted(table["class"].unique())
    if found != list(described.classes):
        raise UserError(
            f"the model knows the classes {', '.join(described.classes)}, but the split has {', '.join(found)}: "
            "train again"
        )
    rows = np.flatnonzero(table["subset"] == subset)
    labels = table["class"].map(found.index).to_numpy()[rows]
    return Batches(images, rows, labels, batch_size, described.mean, described.deviation, device)


def black(described: Description) -> float:
    """Return what the grey value 0 is after normalisation."""
    return -described.mean / max(described.deviation, 1e-6)
