import socket
import urllib.request

import pytest
import torch
import torchvision.models
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models, regnet

from braintumor.errors import UserError
from braintumor.models import Architecture
from braintumor.weights import Description, load_model, save_model


def architecture(name, size=64, dropout=0.45, classes=11):
    return Architecture.named(f"torchvision/{name}", None, None, dropout, size, classes)


@pytest.fixture
def shapes_only(monkeypatch):
    """Build networks without numbers; regnet alone needs some to know its widths."""

    def on_the_cpu(widths=regnet.BlockParams.from_init_params, **options):
        with torch.device("cpu"):
            return widths(**options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_the_cpu)
    with torch.device("meta"):
        yield


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of downloaded weights, empty, on a machine whose way to the internet refuses connections."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib asks for the proxy once in a process
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


def put_weights(hub, name):
    """Put weights where torchvision has its own; return the network in colour that has them."""
    network = get_model(name).eval()
    file = hub / get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1]
    torch.save(network.state_dict(), file)
    return network, file


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_every_classifier_takes_a_grey_image_and_has_one_head_of_our_classes(shapes_only, name):
    model = architecture(name, size=224).build()
    first, *_, last = layers(model)
    assert first.in_channels == first.weight.shape[1] == 1
    assert [layer for layer in layers(model) if layer.weight.shape[0] == 11] == [last] == [model.head]
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} - {0.0} == {0.45}


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_every_image_gets_one_logit_per_class_and_every_weight_a_gradient(name):
    model = architecture(name).build()
    logits = model(torch.randn(2, 1, 64, 64))
    assert logits.shape == (2, 11)
    logits.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 11)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "vit_b_16", "swin_t", "convnext_tiny"])
def test_larger_ones_do_too(shapes_only, name):
    assert architecture(name, 96).build()(torch.empty(2, 1, 96, 96)).shape == (2, 11)


def test_equal_seeds_give_equal_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([weight.flatten() for weight in architecture("squeezenet1_1").build().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_pretrained_weights_see_a_grey_image_as_they_see_it_in_colour(hub, name):
    colour, _ = put_weights(hub, name)
    grey = architecture(name).build(pretrained=True).eval()
    assert not torch.equal(grey.head.weight, layers(colour)[-1].weight[:11])
    with torch.no_grad():
        for own, theirs in zip(grey.head.parameters(), layers(colour)[-1].parameters(), strict=True):
            own.copy_(theirs[:11])
        images = torch.randn(2, 1, 64, 64)
        expected = colour(images.expand(-1, 3, -1, -1))[:, :11]
        assert torch.allclose(grey(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_pretrained_transformer_takes_images_of_another_size(shapes_only, hub):
    put_weights(hub, "vit_b_16")
    model = architecture("vit_b_16", size=160).build(pretrained=True)
    assert model.network.encoder.pos_embedding.shape == (1, 10 * 10 + 1, 768)
    assert model(torch.empty(2, 1, 160, 160)).shape == (2, 11)


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_a_model_comes_back_as_it_was_without_a_download(hub, tmp_path, name):
    _, file = put_weights(hub, name)
    plan = architecture(name)
    model = plan.build(pretrained=True).eval()
    file.unlink()
    files = tmp_path / "model.safetensors", tmp_path / "model.json"
    save_model(model.state_dict(), Description(plan, tuple("abcdefghijk"), {"size": 64}, 0.2, 0.3, {}), *files)
    again, described = load_model(*files)
    assert described.architecture == plan
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(again.eval()(images), model(images))
    assert list(hub.iterdir()) == []


def test_weights_that_cannot_be_downloaded_are_one_line_that_says_where_to_put_them(hub):
    with pytest.raises(UserError) as caught:
        architecture("squeezenet1_1").build(pretrained=True)
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    message = str(caught.value)
    assert "SqueezeNet1_1_Weights.IMAGENET1K_V1 cannot be downloaded" in message
    assert "Connection refused" in message
    assert f"download {url} in a browser and put it at {hub / 'squeezenet1_1-b8a52dc0.pth'}" in message
    assert "\n" not in message
    put_weights(hub, "squeezenet1_1")  # at that path
    architecture("squeezenet1_1").build(pretrained=True)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04", "other"])
def test_a_file_that_is_not_the_weights_is_one_line_that_names_it(hub, content):
    _, file = put_weights(hub, "squeezenet1_1")
    file.write_bytes(put_weights(hub, "mobilenet_v3_small")[1].read_bytes() if content == "other" else content)
    with pytest.raises(UserError, match=r"squeezenet1_1-b8a52dc0\.pth is not SqueezeNet1_1_Weights") as caught:
        architecture("squeezenet1_1").build(pretrained=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "size"), [("squeezenet1_1", 16), ("inception_v3", 64), ("vit_b_16", 100), ("maxvit_t", 160)]
)
def test_images_of_a_size_that_a_network_cannot_take_are_one_line(shapes_only, name, size):
    with pytest.raises(UserError, match=f"torchvision/{name} cannot take images of {size} pixels") as caught:
        architecture(name, size).build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", "did you mean torchvision/resnet18, "),
        ("zzz", "known are alexnet, convnext_base, "),
        ("fcn_resnet50", "torchvision has no classifier fcn_resnet50"),
        ("quantized_googlenet", "did you mean torchvision/googlenet"),
    ],
)
def test_a_name_that_torchvision_does_not_have_is_one_line_with_near_ones(name, message):
    with pytest.raises(UserError, match=message) as caught:
        architecture(name).build()
    assert "\n" not in str(caught.value)
