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
    is_onnx = Path(model).suffix == ".onnx"
    try:
        if is_onnx:
            from braintumor.predictor import load_onnx as load_model
        else:
            from braintumor.deployed import load_inference as load_model
        return load_model(Path(model))
    except ModuleNotFoundError as error:
        from braintumor.errors import UserError

        instead = "pip install it" if is_onnx else "give an .onnx file"
        raise UserError(f"{model}: needs {error.name}, which is not installed; {instead}") from None
