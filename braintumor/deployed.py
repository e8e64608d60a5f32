"""The trained network as it is used: grey values in, logits and novelty out, in torch."""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from braintumor.calibration import load_temperature
from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.predictor import Predictor
from braintumor.provenance import checksum
from braintumor.weights import load_model

BLOCKS = 8  # block means along each side
SEEN = BLOCKS**2 + 6  # what `describe_image` says


class Passing(nn.Module):
    """A last layer that gives its input behind its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (n, d, ...) to (n, outputs + d, ...)."""
        return torch.cat([self.layer(features), features], dim=1)


class Describer(nn.Module):
    """A trained network with its normalisation inside, which also says what it has seen.

    Parameters
    ----------
    model : nn.Module
        Any network of `braintumor.models`; copied.
    mean, deviation : float
        Normalisation, on a scale of 0 to 1.
    classes : int
    """

    def __init__(self, model: nn.Module, mean: float, deviation: float, classes: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(model)
        self.mean, self.deviation, self.classes = mean, max(deviation, 1e-6), classes
        layers = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        self.network.set_submodule(layers[-1], Passing(self.network.get_submodule(layers[-1])))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images of shape (n, 1, size, size), 0 to 255, to logits (n, classes) and features (n, d).

        The features are what the last layer is given, and what `describe_image` says: the network alone has no
        eyes for what its classes do not differ in.
        """
        grey = images.float()
        both = self.network((grey - 255 * self.mean) / (255 * self.deviation))
        return both[:, : self.classes], torch.cat([both[:, self.classes :], describe_image(grey / 255)], dim=1)


def describe_image(grey: Tensor) -> Tensor:
    """Describe images without a network: how bright, how varied, how rough.

    Roughness is the absolute difference of neighbouring pixels, across and down. Logarithms tell a dark or even
    image from those that are merely darker than most.

    Parameters
    ----------
    grey : Tensor of shape (n, 1, size, size), float
        0 to 1.

    Returns
    -------
    Tensor of shape (n, 70)
        The logarithms of mean, standard deviation and roughness; roughness, also as a share of the deviation, and
        where it is largest of 8 x 8 blocks; the means of these blocks.
    """
    across, down = (grey[..., 1:] - grey[..., :-1]).abs(), (grey[..., 1:, :] - grey[..., :-1, :]).abs()
    rough = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
    pooled = (F.avg_pool2d(values, grey.shape[-1] // BLOCKS) for values in (grey, rough))
    means, roughness = (blocks[..., :BLOCKS, :BLOCKS].flatten(1) for blocks in pooled)
    variance = (grey - grey.mean((2, 3), keepdim=True)).square()
    mean, variance, rough_mean = (values.mean((1, 2, 3))[:, None] for values in (grey, variance, rough))
    deviation, step = variance.sqrt(), 1 / 255
    logarithms = torch.log(torch.cat([mean, deviation, rough_mean], dim=1) + step)
    rest = rough_mean, rough_mean / (deviation + step), roughness.amax(1, keepdim=True), means
    return torch.cat([logarithms, *rest], dim=1)


class Novelty(nn.Module):
    """Distance from the nearest class's training images, as a share of the limit (`braintumor.novelty` fits it).

    Parameters
    ----------
    centre : Tensor of shape (d,)
    projection : Tensor of shape (d, q)
        To a space in which distances are Mahalanobis distances.
    means : Tensor of shape (classes, q)
        Of each class, in that space.
    limit : Tensor of shape ()
        The distance that counts 1.
    """

    def __init__(self, centre: Tensor, projection: Tensor, means: Tensor, limit: Tensor) -> None:
        super().__init__()
        for name, value in {"centre": centre, "projection": projection, "means": means, "limit": limit}.items():
            self.register_buffer(name, value)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (n, d) to novelty (n,), 0 or more; over 1 is unlike the training images."""
        differences = ((features - self.centre) @ self.projection)[:, None] - self.means
        return differences.square().sum(2).amin(1).sqrt() / self.limit


class Inference(nn.Module):
    """All that is exported: from grey values of 0 to 255 to logits and novelty."""

    def __init__(self, describer: Describer, novelty: Novelty) -> None:
        super().__init__()
        self.describer, self.novelty = describer, novelty

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images of shape (n, 1, size, size), 0 to 255, to logits (n, classes) and novelty (n,)."""
        logits, features = self.describer(images)
        return logits, self.novelty(features)


def run_batches(module: nn.Module, squares: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a module with two outputs over grey squares, on the CPU.

    Parameters
    ----------
    module : nn.Module
        `Describer` or `Inference`.
    squares : ndarray of shape (n, size, size), uint8
        May be memory-mapped.
    batch_size : int
    """
    with torch.inference_mode():
        parts = [
            module(torch.tensor(squares[start : start + batch_size])[:, None])
            for start in range(0, len(squares), batch_size)
        ]
    first, second = zip(*parts, strict=True)
    return torch.cat(first).numpy(), torch.cat(second).numpy()


def save_novelty(novelty: Novelty, weights: Path, file: Path) -> None:
    """Write what `load_inference` reads, as safetensors, with the checksum of the weights that it belongs to."""
    tensors = {name: value.contiguous() for name, value in novelty.state_dict().items()}
    with replacing_file(file) as beside:
        beside.write_bytes(save(tensors, {"weights": checksum(weights)}))  # as in `save_model`


def load_inference(folder: Path) -> Predictor:
    """Load a model from the pipeline's folder, to run in torch on the CPU.

    Raises
    ------
    UserError
        If one of its files is missing or damaged, or its novelty is that of other weights.
    """
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{weights}: there is no model; make repro trains one, make demo one in demo/models")
    model, described = load_model(weights, folder / "model.json")
    temperature = load_temperature(folder / "calibration.json")
    file = folder / "novelty.safetensors"
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        novelty = Novelty(**load_file(file))
    except (OSError, TypeError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())}): run dvc repro export") from None
    # The stages calibrate and export come after train: where only that has run, both are still of the old weights.
    if metadata.get("weights") != checksum(weights):
        raise UserError(f"{file}: is of other weights than {weights}: run dvc repro export")
    describer = Describer(model, described.mean, described.deviation, len(described.classes))
    module = Inference(describer, novelty)
    return Predictor(
        described.classes, described.preprocess, temperature, lambda squares: run_batches(module, squares, 64)
    )
