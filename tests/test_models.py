import pytest
import torch
from torch import nn

from braintumor.errors import UserError
from braintumor.models import Architecture, count_parameters, halvings_of
from braintumor.params import load_params
from tests.conftest import PROJECT


def architecture(name, channels=None, hidden=None, dropout=0.3, size=256, classes=4):
    return Architecture.named(name, channels, hidden, dropout, size, classes)


@pytest.mark.parametrize(
    ("name", "parameters"), [("cnn0", 33_488), ("cnn1", 266_364), ("cnn2", 146_860), ("cnn3", 9_369_668)]
)
def test_the_seeds_networks_have_its_parameter_counts(name, parameters):
    assert count_parameters(architecture(name).build()) == parameters


def test_cnn3_has_the_seeds_parameters_layer_by_layer():
    layers = [m for m in architecture("cnn3").build().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counts = [count_parameters(layer) for layer in layers]
    assert counts == [896, 18_496, 73_856, 295_168, 590_080, 8_389_120, 2_052]


def test_the_seeds_network_gives_what_its_own_order_of_layers_gives_on_three_channels():
    torch.manual_seed(0)
    model = architecture("cnn2", size=64).build().eval()
    layers = []
    for convolution in (layer for layer in model.blocks if isinstance(layer, nn.Conv2d)):
        own = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
        own.load_state_dict(convolution.state_dict())
        layers += [own, nn.ReLU(), nn.MaxPool2d(2)]
    images = torch.randn(3, 1, 64, 64)
    expected = model.head(nn.Sequential(*layers)(images.expand(-1, 3, -1, -1)))
    assert torch.allclose(model(images), expected, atol=1e-5)


def test_any_other_stack_of_blocks_is_built():
    # 3 -> 5 -> 6 channels, 16 x 16 down to 4 x 4, 7 hidden units, 3 classes, by hand:
    expected = (3 * 9 * 5 + 5) + (5 * 9 * 6 + 6) + (6 * 16 * 7 + 7) + (7 * 3 + 3)
    model = architecture("cnn", channels=[5, 6], hidden=7, size=16, classes=3).build()
    assert count_parameters(model) == expected
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_the_default_network_stays_under_a_million_and_a_half():
    params = load_params(PROJECT / "params.yaml")
    network = Architecture.of(params.train, params.preprocess.size, classes=4).build()
    assert count_parameters(network) < 1_500_000


def test_a_stem_that_does_not_pool_leaves_the_same_weights_and_twice_the_side():
    pooled, plain = (architecture(name, size=96).build() for name in ("resnet", "resnet_nopool"))
    assert count_parameters(pooled) == count_parameters(plain)
    images = torch.zeros(1, 1, 96, 96)
    assert [model.blocks(model.stem(images)).shape[-1] for model in (pooled, plain)] == [3, 6]


def test_last_blocks_that_halve_no_more_leave_the_same_weights_and_twice_the_side():
    whole, finer = (architecture(name, size=96).build() for name in ("resnet", "resnet_stride16"))
    assert count_parameters(whole) == count_parameters(finer)
    features = finer.stem(torch.zeros(1, 1, 96, 96))
    sides = [(features := block(features)).shape[-1] for block in finer.blocks]
    assert sides == [24, 24, 12, 12, 6, 6, 6, 6]
    assert halvings_of((8, 8), halves_last=False) == [False, False]


@pytest.mark.parametrize("name", ["cnn2", "resnet", "resnet_stride16", "resnet_nopool"])
@pytest.mark.parametrize("size", [33, 96])
def test_every_image_gets_one_logit_per_class(name, size):
    model = architecture(name, size=size).build().eval()
    images = torch.randn(2, 1, size, size)
    both, first = model(images), model(images[:1])
    assert both.shape == (2, 4)
    assert torch.allclose(both[:1], first, atol=1e-5)


def test_dropout_is_the_given_probability_before_each_linear_layer():
    for name, places in (("cnn0", 2), ("resnet", 1)):
        dropouts = [m.p for m in architecture(name, dropout=0.45).build().modules() if isinstance(m, nn.Dropout)]
        assert dropouts == [0.45] * places


def test_equal_seeds_give_equal_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([weight.flatten() for weight in architecture("resnet").build().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_images_too_small_for_the_blocks_are_an_error():
    with pytest.raises(UserError, match=r"halves an image of 16 pixels 5 times, to nothing; .* at least 32"):
        architecture("cnn3", size=16)
