"""A trained model as it is used: a picture in, calibrated probabilities out, or that it is like none in training.

Nothing here needs torch; `braintumor.deployed` runs a model in it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from braintumor.errors import UserError
from braintumor.images import crop_head, resize_square, to_grey
from braintumor.scans import stretch

INPUT, OUTPUTS = "images", ("logits", "novelty")  # of the graph in model.onnx


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes
    ----------
    label : str or None
        The most probable class; none for an image unlike the training images.
    probabilities : dict of str to float, or None
        Calibrated, of each class; none for an image unlike the training images.
    novelty : float
        How far from the training images it is; 1 is the limit, and more is unlike them.
    logits : dict of str to float
        What the network gives for each class, whatever the image is.
    """

    label: str | None
    probabilities: dict[str, float] | None
    novelty: float
    logits: dict[str, float]

    @property
    def unlike_training(self) -> bool:
        """Whether the image is unlike the training images."""
        return self.novelty > 1

    @property
    def probability(self) -> float | None:
        """Probability of the class; none for an image unlike the training images."""
        return self.probabilities[self.label] if self.probabilities else None


@dataclass(frozen=True)
class Predictor:
    """A model with all that comes before and after it.

    Attributes
    ----------
    classes : tuple of str
        In the order of the logits.
    preprocess : dict
        How an image becomes a grey square: size, crop and fit, as in training.
    temperature : float
        What logits are divided by to be calibrated (Guo et al. 2017, arXiv:1706.04599).
    run : callable
        From grey squares, uint8 of shape (n, size, size), to logits (n, classes) and novelty (n,).
    """

    classes: tuple[str, ...]
    preprocess: dict
    temperature: float
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def predict(self, image: np.ndarray | Image.Image) -> Prediction:
        """Say what an image shows.

        Parameters
        ----------
        image : PIL.Image.Image or ndarray
            Of any mode; of shape (rows, columns) in grey, or (rows, columns, 3 or 4) of uint8 in colour. Grey
            values of another type than uint8 are stretched from their smallest to their largest.
        """
        return self.predict_squares(self.square(as_grey(image))[None])[0]

    def square(self, grey: np.ndarray) -> np.ndarray:
        """Make of a grey image, uint8 of shape (rows, columns), the square that training made of it."""
        if self.preprocess["crop"]:
            grey = crop_head(grey)
        return resize_square(grey, self.preprocess["size"], self.preprocess["fit"] == "letterbox")

    @property
    def decoded(self) -> int | None:
        """Smallest side that a JPEG may be decoded at, in pixels, as in training; None for its whole size."""
        return None if self.preprocess["crop"] else self.preprocess["size"]

    def predict_squares(self, squares: np.ndarray) -> list[Prediction]:
        """Say what grey squares show: uint8 of shape (n, size, size)."""
        logits, novelty = self.run(squares)
        scaled = logits.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        probabilities = weights / weights.sum(1, keepdims=True)
        return [
            Prediction(
                None if new > 1 else self.classes[shares.argmax()],
                None if new > 1 else dict(zip(self.classes, shares.tolist(), strict=True)),
                float(new),
                dict(zip(self.classes, values.tolist(), strict=True)),
            )
            for shares, new, values in zip(probabilities, novelty, logits, strict=True)
        ]


def as_grey(image: np.ndarray | Image.Image) -> np.ndarray:
    """Turn a Pillow image or an array into grey, uint8 of shape (rows, columns)."""
    if isinstance(image, Image.Image):
        return to_grey(ImageOps.exif_transpose(image))
    if image.ndim == 2 and image.dtype.kind in "iuf" and image.dtype != np.uint8:
        return stretch(image)
    colour = image.ndim == 3 and image.shape[2] in (3, 4) and image.dtype == np.uint8
    if not colour and (image.ndim != 2 or image.dtype not in (np.uint8, bool)):
        raise ValueError(
            f"an image is (rows, columns) or (rows, columns, 3 or 4) of uint8, not {image.shape} of {image.dtype}"
        )
    return to_grey(Image.fromarray(image))


def load_onnx(file: Path, threads: int = 1) -> Predictor:
    """Load what the stage export wrote; the file alone is enough.

    Raises
    ------
    UserError
        If the file is missing, damaged, or not ours.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
        said = session.get_modelmeta().custom_metadata_map
        classes, preprocess, temperature = (json.loads(said[k]) for k in ("classes", "preprocess", "temperature"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}; dvc repro export makes it") from None
    except KeyError as error:
        raise UserError(
            f"{file}: says nothing of its {error.args[0]}: it is not a model of this pipeline"
        ) from None
    except Exception as error:  # onnxruntime's own kinds have no base of their own
        raise UserError(f"{file}: is not a model that can be loaded: {' '.join(str(error).split())}") from None

    def run(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(session.run(OUTPUTS, {INPUT: squares[:, None]}))

    return Predictor(tuple(classes), preprocess, temperature, run)
