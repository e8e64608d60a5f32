"""What the stages share: plain functions and small classes from images to scores; and a trained model to use."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from braintumor.predictor import Predictor


def load(model: str | Path = "models") -> "Predictor":
    """Load a trained model, to use it.

    Parameters
    ----------
    model : str or Path
        The pipeline's folder of models, or its ``model.onnx``, which needs no torch.

    Raises
    ------
    UserError
        If there is no model, or one that is not whole.

    Examples
    --------
    >>> import braintumor
    >>> braintumor.load("models").predict(PIL.Image.open("slice.jpg")).label  # doctest: +SKIP
    'meningioma'
    """
    from braintumor.predictor import load_predictor  # here, so that what needs none of it does not wait for it

    return load_predictor(Path(model))
