"""The parts of a test set that tell memory from knowledge: copies, patients seen in training, and neither."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from braintumor.intervals import share


@dataclass(frozen=True)
class Subset:
    """A part of the test set, or a way to weigh it.

    Attributes
    ----------
    name, description : str
    images : int
    right : ndarray of shape (units,), 0 to 1
        Of each unit that weighs one, such as an image or a patient, the share that is right.
    """

    name: str
    description: str
    images: int
    right: np.ndarray

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """The share that is right, with its interval (see `intervals.share`); None without a unit."""
        return share(self.right) if len(self.right) else None


def make_subsets(tested: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> list[Subset]:
    """Cut a test set into the parts that its accuracy is reported on.

    Parameters
    ----------
    tested : DataFrame with columns class, prediction, copy_group, patient, copied and patient_seen
    probabilities : ndarray of shape (len(tested), classes)
    classes : list of str
    """
    right = (tested["class"] == tested["prediction"]).astype(float)
    copied, seen = tested["copied"], tested["patient_seen"]
    known = tested["patient"].notna()

    def images(name: str, description: str, among: pd.Series) -> Subset:
        return Subset(name, description, int(among.sum()), right[among].to_numpy())

    distinct = right.groupby(tested["copy_group"]).mean().to_numpy()
    patients = right[known].groupby(tested["patient"][known]).mean().to_numpy()
    together = right_together(tested[known], probabilities[known.to_numpy()], classes)
    return [
        images("all", "all test images", known | ~known),
        Subset("distinct", "each group of copies weighs one", len(tested), distinct),
        images("copied", "images with a copy in training", copied),
        images("copy_free", "images without a copy in training", ~copied),
        images("patient_seen", "images of a patient known to be in training", seen),
        images("patient_free", "images without a copy or a known patient in training", ~seen & ~copied),
        Subset("patients", "each known patient weighs one", int(known.sum()), patients),
        Subset("patients_together", "known patients by the mean of their images", int(known.sum()), together),
    ]


def right_together(tested: pd.DataFrame, probabilities: np.ndarray, classes: list[str]) -> np.ndarray:
    """Say which patients are right by the mean probability of all their images.

    A patient's class is the one that most of the images are filed under, the first by name of several.

    Parameters
    ----------
    tested : DataFrame with columns class and patient, without a missing one
    probabilities : ndarray of shape (len(tested), classes)
    classes : list of str

    Returns
    -------
    ndarray of shape (patients,), 0 or 1
    """
    names = tested["patient"].to_numpy()
    means = pd.DataFrame(probabilities).groupby(names).mean().to_numpy()
    actual = pd.get_dummies(tested["class"]).reindex(columns=classes, fill_value=False)
    filed = actual.groupby(names).sum().to_numpy()
    return (means.argmax(1) == filed.argmax(1)).astype(float) if len(tested) else np.zeros(0)


def subset_table(subsets: list[Subset]) -> pd.DataFrame:
    """List the accuracy of each subset; it is missing where the subset is empty."""
    return pd.DataFrame(
        {
            "subset": [subset.name for subset in subsets],
            "description": [subset.description for subset in subsets],
            "images": [subset.images for subset in subsets],
            "units": [len(subset.right) for subset in subsets],
        }
        | {
            bound: [round(subset.accuracy[i], 4) if subset.accuracy else np.nan for subset in subsets]
            for i, bound in enumerate(("accuracy", "low", "high"))
        }
    )
