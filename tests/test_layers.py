"""Layers of our networks and of torchvision's: which one makes the maps, and what shuffling does to them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from braintumor.batches import Batches
from braintumor.errors import UserError
from braintumor.figures import layer_sheet
from braintumor.layers import choose_layer, layer_outputs, shuffle_from_the_last, weighted_layers
from braintumor.models import Architecture
from braintumor.saliency import gradcam


def build(name, size, channels=None):
    torch.manual_seed(0)
    return Architecture.named(name, channels, None, 0.2, size, 4).build()


def test_outputs_come_in_the_order_of_the_computation_and_are_copies():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten())
    images = torch.randn(3, 1, 4, 4)
    outputs = layer_outputs(model, images)
    assert list(outputs) == ["0", "1", "2"]
    assert torch.equal(outputs["0"], model[0](images))  # the ReLU has written into it since
    assert torch.equal(outputs["2"], model(images))
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("name", "size", "layer", "side"),
    [
        ("resnet_stride16", 160, "blocks", 10),
        ("resnet", 160, "blocks", 5),
        ("resnet", 96, "blocks.5", 6),
        ("resnet", 256, "blocks", 8),
        ("resnet", 32, "blocks.3", 4),
        ("cnn0", 16, "blocks.6", 4),  # the third convolution, before its pooling
        ("cnn0", 160, "blocks", 10),
        ("cnn3", 160, "blocks", 5),
        ("torchvision/resnet18", 160, "network.layer4", 5),
        ("torchvision/squeezenet1_1", 160, "network.classifier.2", 9),  # one map a class
        ("torchvision/mobilenet_v3_small", 96, "network.features.9.block.0", 6),  # widens before it halves
    ],
)
def test_the_maps_are_made_of_the_last_layer_that_is_fine_enough(name, size, layer, side):
    model = build(name, size)
    outputs = layer_outputs(model, torch.zeros(1, 1, size, size))
    assert choose_layer(outputs, "auto") == layer
    images = np.random.default_rng(0).integers(0, 255, (3, size, size), np.uint8)
    batches = Batches(images, np.arange(3), [0, 1, 2], 2, 0.2, 0.2, torch.device("cpu"))
    assert gradcam(model, layer, batches).shape == (3, side, side)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["vgg11", "densenet121", "googlenet", "inception_v3", "convnext_tiny", "swin_t", "vit_b_32", "maxvit_t"],
)
def test_every_kind_of_torchvision_network_has_maps(name):
    model = build(f"torchvision/{name}", 224)
    outputs = layer_outputs(model, torch.zeros(1, 1, 224, 224))
    batches = Batches(np.zeros((1, 224, 224), np.uint8), [0], [1], 1, 0.2, 0.2, torch.device("cpu"))
    maps = gradcam(model, choose_layer(outputs, "auto"), batches)
    assert maps.shape[1] == maps.shape[2] >= 4


@pytest.mark.slow
def test_channels_that_come_last_are_no_places():
    outputs = layer_outputs(build("torchvision/swin_t", 96), torch.zeros(1, 1, 96, 96))
    assert outputs["network.features.5"].shape == (1, 6, 6, 384)
    # Of what has its channels first the patches are the only ones of 4 x 4 places; 3 x 3 can be asked for.
    assert outputs[choose_layer(outputs, "auto")].shape == (1, 96, 24, 24)
    assert outputs[choose_layer(outputs, "network.permute")].shape == (1, 768, 3, 3)


def test_a_network_that_never_says_where_is_an_error():
    outputs = {"patches": torch.zeros(1, 768, 1, 1), "head": torch.zeros(1, 3)}
    for layer in ("auto", "patches"):
        with pytest.raises(UserError, match=r"^explain\.layer: no layer .* larger preprocess\.size$"):
            choose_layer(outputs, layer)


def test_a_layer_by_name_and_one_that_there_is_not():
    outputs = layer_outputs(build("cnn0", 32), torch.zeros(1, 1, 32, 32))
    assert choose_layer(outputs, "blocks.3") == "blocks.3"
    for layer in ("blocks.99", "head.2"):  # the second puts out numbers
        with pytest.raises(UserError, match=rf"explain.layer: {layer} puts out no maps .*blocks.0, blocks.1"):
            choose_layer(outputs, layer)


def test_layers_are_convolutions_and_linear_layers_with_the_norms_after_them():
    layers = weighted_layers(build("resnet", 64, [8, 16]))
    assert list(layers) == [
        "stem.0", "blocks.0.residual.0", "blocks.0.residual.3", "blocks.1.residual.0", "blocks.1.residual.3",
        "blocks.1.shortcut.1", "head",
    ]  # fmt: skip
    kinds = [type(module) for module in layers["blocks.1.shortcut.1"]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]


def test_shuffling_goes_from_the_last_layer_to_the_first_and_keeps_the_numbers():
    model = build("cnn0", 32)
    trained = copy.deepcopy(model)
    names = ["head.5", "head.2", "blocks.9", "blocks.6", "blocks.3", "blocks.0"]
    weights = [(trained.get_submodule(name).weight, model.get_submodule(name).weight) for name in names]
    for step, (count, name) in enumerate(shuffle_from_the_last(model, 16, 3)):
        assert (count, name) == (step + 1, names[step])
        assert [torch.equal(*pair) for pair in weights] == [False] * count + [True] * (6 - count)
    assert step == 5
    for before, after in weights:
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)


def test_shuffling_repeats_by_its_seed_and_may_stop_seldom():
    models = [build("resnet", 32, [8, 16]) for _ in range(3)]
    stops = [list(shuffle_from_the_last(m, 3, seed)) for m, seed in zip(models, (1, 1, 2), strict=True)]
    assert stops[0] == [(2, "blocks.1.shortcut.1"), (5, "blocks.0.residual.3"), (7, "stem.0")]
    heads = [model.head.weight for model in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_of_a_transformer_the_layers_that_make_pictures_are_drawn(name):
    model = build(f"torchvision/{name}", 64)
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    outputs = layer_outputs(model, torch.from_numpy(image)[None, None] / 255)
    titles = [axis.get_title(loc="left") for axis in layer_sheet("a", image, model, outputs).axes]
    # The image, the convolution that cuts it into patches, and the logits.
    assert titles[0] == "the image" and "channels" in titles[1]
    assert len(titles) > 2 and all(title.endswith(": 4 values") for title in titles[2:])


def test_a_sheet_shows_the_image_and_every_layer_with_weights():
    model = build("cnn0", 32)
    image = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    outputs = layer_outputs(model, torch.from_numpy(image)[None, None].float())
    figure = layer_sheet("title", image, model, outputs)
    names = [axis.get_title(loc="left").split(", channels")[0] for axis in figure.axes]
    sizes = ["4 x 32 x 32", "4 x 16 x 16", "4 x 8 x 8", "4 x 4 x 4"]
    convolutions = [f"blocks.{3 * i}: {size}" for i, size in enumerate(sizes)]
    assert names == ["the image", *convolutions, "head.2: 32 values", "head.5: 4 values"]
    # A layer's tiles are its channels, the values of a linear layer one tile of one row.
    assert [len(axis.images) for axis in figure.axes] == [1, 4, 4, 4, 4, 1, 1]
    assert figure.axes[-1].images[0].get_array().shape == (1, 4)
    shown = figure.axes[-1].images[0].get_array()[0]
    assert shown.argmax() == outputs["head.5"][0].argmax() and (shown.min(), shown.max()) == (0, 255)
