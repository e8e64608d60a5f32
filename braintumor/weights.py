"""A trained model on disk: weights as safetensors, and beside them all that is needed to use them."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.models import Architecture


@dataclass(frozen=True)
class Description:
    """What goes with the weights.

    Attributes
    ----------
    architecture : Architecture
    classes : tuple of str
        Names of the classes, in the order of the logits.
    preprocess : dict
        How an image becomes a grey square: size, crop and fit, as in params.yaml.
    mean, deviation : float
        Normalisation, on a scale of 0 to 1.
    environment : dict
        What it was trained on; see `device.describe_environment`.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    preprocess: dict
    mean: float
    deviation: float
    environment: dict


def save_model(state: dict[str, Tensor], description: Description, weights: Path, file: Path) -> None:
    """Write a network's weights (safetensors), given as its state dict, and description (json)."""
    with replacing_file(weights) as beside:
        # Python writes the bytes: its error, of a full disk for example, is an OSError.
        beside.write_bytes(save({name: value.cpu().contiguous() for name, value in state.items()}))
    with replacing_file(file) as beside:
        beside.write_text(json.dumps(dataclasses.asdict(description), indent=2) + "\n", encoding="utf-8")


def load_model(weights: Path, file: Path) -> tuple[nn.Module, Description]:
    """Read what `save_model` wrote.

    Raises
    ------
    UserError
        If one of the two cannot be read, or if they do not belong together.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        architecture = content.pop("architecture")
        architecture["channels"] = tuple(architecture["channels"])
        content["classes"] = tuple(content["classes"])
        description = Description(Architecture(**architecture), **content)
        model = description.architecture.build()
        model.load_state_dict(load_file(weights))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{weights} and {file} are not a model that can be loaded: {reason}") from None
    return model, description
