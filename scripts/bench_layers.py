"""Counting the operations of a network, and timing the parts of its training step one by one."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812, the usual name
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench_setup import Bench, Network, feed, interleaved


def flops_of(call: Callable[[], object]) -> int:
    """Count the multiplications and additions of the convolutions and matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def count_flops(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return the operations of a forward pass, and of a forward and a backward pass."""
    model.train()
    return flops_of(lambda: model(images)), flops_of(lambda: F.cross_entropy(model(images), labels).backward())


def name_of(precision: torch.dtype) -> str:
    """Return a type's name without torch's."""
    return str(precision).removeprefix("torch.")


def describe(layer: nn.Module, given: Tensor) -> str:
    """Say what a layer is and what it works on."""
    place = " x ".join(map(str, given.shape[2:]))
    if isinstance(layer, nn.Conv2d):
        kernel = " x ".join(map(str, layer.kernel_size))
        return f"convolution {kernel}, {layer.in_channels} to {layer.out_channels}, on {place}"
    if isinstance(layer, nn.Linear):
        return f"linear, {layer.in_features} to {layer.out_features}"
    return type(layer).__name__ + (f" on {place}" if place else "")


def forward(model: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    """Compute logits in a precision, as the training loop does."""
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        return model(images)


def layer_calls(model: nn.Module, images: Tensor, precision: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return for each layer a call of its forward and backward pass alone, on its input in the network.

    The names are ``<kind>/<name>: <description>``.
    """
    inputs: dict[nn.Module, Tensor] = {}
    names = {layer: name for name, layer in model.named_modules() if not list(layer.children())}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: inputs.update({layer: given[0]})) for layer in names
    ]
    forward(model, images, precision)
    for hook in hooks:
        hook.remove()

    def call_of(layer: nn.Module, given: Tensor) -> Callable[[], object]:
        # The first layer's input needs no gradient.
        given = given.detach().requires_grad_(given.requires_grad)

        def call() -> None:
            layer.zero_grad()
            out = forward(layer, given, precision)
            out.backward(torch.ones_like(out))
            given.grad = None

        return call

    return {
        f"{type(layer).__name__}/{names[layer]}: {describe(layer, given)}": call_of(layer, given)
        for layer, given in inputs.items()
    }


def dissect(shared: Bench, network: Network, precisions: list[torch.dtype]) -> dict:
    """Time a network's forward pass and step in some precisions, and each part of a step in the last of them."""
    effort, sides = shared.effort, {}
    for precision in precisions:
        training = shared.training(network, precision)
        images, labels = next(training.train.in_order())
        sides[f"forward {name_of(precision)}"] = partial(forward, training.model.train(), images, precision)
        sides[f"step {name_of(precision)}"] = training.run_epoch
    layers = layer_calls(training.model, images, precision)
    others = {
        "feeding": lambda: feed(training.train.shuffled(training.augmentation, 0)),
        "optimizer": training.optimizer.step,
        "averaging": training.average.update,
    }
    taken = interleaved(sides | layers | others, shared.device, effort.rounds, effort.turn)
    for name, seconds in taken.items():
        if name.startswith(("step", "feeding")):
            seconds[:] = [t / network.steps for t in seconds]
    ahead, whole = count_flops(training.model, images, labels)
    return {
        "name": network.train.model,
        "size": network.size,
        "batch_size": network.train.batch_size,
        "precision": name_of(precision),
        "flops": {"forward": ahead, "step": whole},
        "seconds": {name: taken[name] for name in sides},
        "parts": {
            name: {"flops": flops_of(layers[name]) if name in layers else 0, "seconds": taken[name]}
            for name in layers | others
        },
    }
