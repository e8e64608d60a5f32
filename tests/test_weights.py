import json

import pytest
import torch

from braintumor.errors import UserError
from braintumor.models import Architecture
from braintumor.weights import Description, load_model, save_model
from tests.conftest import full_disk


@pytest.fixture
def saved(tmp_path):
    architecture = Architecture.named("resnet", [8, 16], None, 0.1, 32, 3)
    model = architecture.build().eval()
    description = Description(
        architecture,
        ("b", "a", "c"),
        {"size": 32, "crop": False, "fit": "stretch"},
        0.2,
        0.3,
        {"device": "abacus"},
    )
    files = tmp_path / "models" / "model.safetensors", tmp_path / "models" / "model.json"
    save_model(model.state_dict(), description, *files)
    return model, description, files


def test_a_model_comes_back_as_it_was(saved):
    model, description, files = saved
    again, described = load_model(*files)
    assert described == description
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(again.eval()(images), model(images))


def test_equal_models_give_equal_bytes(saved, tmp_path):
    model, description, files = saved
    others = tmp_path / "other.safetensors", tmp_path / "other.json"
    save_model(model.state_dict(), description, *others)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in others]


def test_a_disk_that_is_full_leaves_the_model_as_it_was_and_is_an_error_of_the_file(saved):
    model, description, files = saved
    before = files[0].read_bytes()
    with full_disk(len(before) // 2), pytest.raises(OSError) as caught:
        save_model(model.state_dict(), description, *files)
    assert caught.value.filename == str(files[0]) and caught.value.strerror
    assert sorted(file.name for file in files[0].parent.iterdir()) == sorted(file.name for file in files)
    assert files[0].read_bytes() == before


def test_weights_of_another_architecture_are_an_error(saved):
    _, _, (weights, file) = saved
    content = json.loads(file.read_text())
    content["architecture"]["channels"] = [8, 24]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="size mismatch") as caught:
        load_model(weights, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights", "description"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_files_that_are_no_model_are_an_error(saved, name, content):
    _, _, (weights, description) = saved
    file = weights if name == "weights" else description
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match="are not a model that can be loaded"):
        load_model(weights, description)
