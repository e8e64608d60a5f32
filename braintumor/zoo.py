"""Torchvision's classifiers, taught to take one grey channel and to tell our classes apart."""

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision.models
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import GoogLeNet, Inception3, VisionTransformer, get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import interpolate_embeddings

from braintumor.errors import UserError


class TorchvisionNetwork(nn.Module):
    """A torchvision classifier with one input channel and a last layer of its own.

    Parameters
    ----------
    name : str
        As `torchvision.models` lists it.
    dropout, size, classes
        See `braintumor.models.Architecture`.
    pretrained : bool
        Start from the weights that torchvision has for it, downloaded unless they lie in torch.hub's folder.

    Raises
    ------
    UserError
        If there is no such classifier, if it does not take images of this size, or if its weights cannot be had.
    """

    def __init__(self, name: str, dropout: float, size: int, classes: int, pretrained: bool) -> None:
        super().__init__()
        try:
            self.network = _build(name, size)
            self._head = _adapt(self.network, dropout, classes)
            # A forward pass that computes shapes and nothing else.
            weights = {key: value.to("meta") for key, value in self.state_dict().items()}
            functional_call(self.eval(), weights, torch.empty(2, 1, size, size, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = shorten(str(error), 300, placeholder=" ...")
            raise UserError(
                f"train.model: torchvision/{name} cannot take images of {size} pixels ({reason}); "
                "change preprocess.size"
            ) from None
        self.train()
        if pretrained:
            source = _pretrained(name)
            _adapt(source, dropout, classes)
            state = source.state_dict()
            if isinstance(source, VisionTransformer):
                state = interpolate_embeddings(size, source.patch_size, state)
            self.network.load_state_dict(state)

    @property
    def head(self) -> nn.Module:
        """The last layer; by its path, since a second reference would save its weights twice."""
        return self.network.get_submodule(self._head)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images of shape (n, 1, size, size) to logits of shape (n, classes)."""
        return self.network(images)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights of this version of torchvision; safetensors keep no version and mnasnet asks for one."""
        state_dict = OrderedDict(state_dict)
        state_dict._metadata = self.state_dict()._metadata
        return super().load_state_dict(state_dict, *args, **kwargs)


def _build(name: str, size: int) -> nn.Module:
    """Build torchvision's network with fresh weights."""
    known = list_models(module=torchvision.models)  # without those for segmentation, detection and video
    if name not in known:
        close = ", ".join(f"torchvision/{other}" for other in difflib.get_close_matches(name, known))
        hint = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
        raise UserError(f"train.model: torchvision has no classifier {name}; {hint}")
    options = {}
    if name.startswith("vit_"):
        options = {"image_size": size}
    elif name == "maxvit_t":
        options = {"input_size": (size, size)}
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": True}  # the default, which warns where it is not asked for
    return get_model(name, **options)


def _adapt(network: nn.Module, dropout: float, classes: int) -> str:
    """Give a network one input channel, our logits and our dropout; return the path of its last layer."""
    if isinstance(network, GoogLeNet | Inception3):
        network.aux_logits = network.transform_input = False
        network.aux1 = network.aux2 = network.AuxLogits = None
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    # A grey image in colour is three equal channels, and a convolution adds up what it makes of each: one channel
    # with the sum of the weights gives the same. (Fresh weights get the spread that one channel calls for.)
    first = next(iter(layers.values()))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1
    path, last = layers.popitem()
    if isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, classes, last.bias is not None)
    else:  # squeezenet
        head = nn.Conv2d(last.in_channels, classes, 1)
    # Torchvision's classifiers drop out before their last layers or nowhere; elsewhere the probability is 0.
    dropouts = [layer for layer in network.modules() if isinstance(layer, nn.Dropout) and layer.p > 0]
    for layer in dropouts:
        layer.p = dropout
    network.set_submodule(path, head if dropouts else nn.Sequential(nn.Dropout(dropout), head))
    return path if dropouts else f"{path}.1"


def _pretrained(name: str) -> nn.Module:
    """Build a network with the weights that torchvision has for it."""
    weights = get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        return get_model(name, weights=weights)
    except (OSError, EOFError, HTTPException, RuntimeError, UnpicklingError) as error:
        reason = shorten(str(error), 300, placeholder=" ...")
    if file.exists():
        raise UserError(f"train.pretrained: {file} is not {weights} ({reason}); delete it to download it again")
    raise UserError(
        f"train.pretrained: {weights} cannot be downloaded ({reason}); download {weights.url} in a browser and "
        f"put it at {file}, or set train.pretrained to false"
    )
