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
    # Imported here, so that what needs none of it does not wait for it, and an .onnx file works without torch.
    if Path(model).suffix == ".onnx":
        from braintumor.predictor import load_onnx

        return load_onnx(Path(model))
    try:
        from braintumor.deployed import load_inference
    except ModuleNotFoundError as error:
        from braintumor.errors import UserError

        raise UserError(f"{model}: needs {error.name}, which is not installed; give an .onnx file") from None
    return load_inference(Path(model))
