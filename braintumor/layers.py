"""A network seen layer by layer: what each one puts out, which one still says where, and shuffling them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from braintumor.batches import Batches
from braintumor.errors import UserError

PLACES = 4  # a side of fewer says hardly more than left or right, up or down


def first_images(batches: Batches) -> Tensor:
    """Return the images of the first batch, of shape (b, 1, size, size)."""
    return next(batches.in_order())[0]


def layer_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run a network once and keep what each of its modules puts out, in the order in which they end.

    Parameters
    ----------
    model : nn.Module
        Is set to evaluation.
    images : Tensor of shape (n, 1, size, size)

    Returns
    -------
    dict of str to Tensor
        By the module's path; a module that runs several times has its last output.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(name, None)
            outputs[name] = output.detach().clone()  # what comes next may write into it

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def choose_layer(outputs: dict[str, Tensor], layer: str) -> str:
    """Return the path of the layer to explain a network by.

    Parameters
    ----------
    outputs : dict of str to Tensor
        From `layer_outputs`.
    layer : str
        Path of a module, or ``auto``: the last whose output has 4 x 4 places or more, and where none has, the
        last of those with the most.

    Raises
    ------
    UserError
        If there is no such layer, or its output is no set of maps.
    """
    # Maps of square images are square; Swin's, with their channels last, look so where there are as many of these.
    maps = {name: output.shape for name, output in outputs.items() if output.ndim == 4}
    sides = {name: shape[2] for name, shape in maps.items() if shape[2] == shape[3] > 1}
    if not sides:
        raise UserError("explain.layer: no layer of this network says where: take a larger preprocess.size")
    if layer == "auto":
        enough = min(PLACES, max(sides.values()))
        return [name for name, side in sides.items() if side >= enough][-1]
    if layer not in sides:
        raise UserError(
            f"explain.layer: {layer} puts out no maps in this network; those that do: {', '.join(sides)}"
        )
    return layer


def weighted_layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """List a network's layers in their order, each a convolution or linear layer with the norms after it.

    Returns
    -------
    dict of str to list of nn.Module
        By the path of the first of the modules.
    """
    layers: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and (not layers or any(weight.ndim > 1 for weight in own)):
            layers[name] = [module]
        elif own:
            next(reversed(layers.values())).append(module)
    return layers


@torch.no_grad()
def shuffle_from_the_last(model: nn.Module, stops: int, seed: int) -> Iterator[tuple[int, str]]:
    """Shuffle a network's layers one after the other, from the last to the first.

    Each tensor of a layer keeps its numbers, in random order: cascading randomisation (Adebayo et al. 2018,
    arXiv:1810.03292) with the distribution of the trained weights.

    Parameters
    ----------
    model : nn.Module
        Is changed.
    stops : int
        At most as many times what is shuffled so far is handed out, evenly spaced, the last time all of it.
    seed : int

    Yields
    ------
    count, path
        How many layers are shuffled, and which was last.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = list(weighted_layers(model).items())[::-1]
    at = set(np.linspace(len(layers), 0, min(stops, len(layers)), endpoint=False).round().astype(int).tolist())
    for count, (name, modules) in enumerate(layers, 1):
        for module in modules:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].view_as(tensor))
        if count in at:
            yield count, name
