from pathlib import Path

import pytest
import yaml

from braintumor.errors import UserError
from braintumor.params import load_params

PARAMS = Path(__file__).parent.parent / "params.yaml"


def write(tmp_path, changes):
    content = yaml.safe_load(PARAMS.read_text())
    for name, value in changes.items():
        section, key = name.split(".")
        content[section][key] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_projects_own_params_are_right():
    assert load_params(PARAMS).data.source == "kaggle"


def test_a_number_with_an_exponent_and_no_point_is_a_float(tmp_path):
    # DVC writes -S train.lr=1e-5 as 1e-05, which YAML reads as text.
    file = write(tmp_path, {})
    file.write_text(file.read_text().replace("  lr: 0.3", "  lr: 1e-05"))
    assert yaml.safe_load(file.read_text())["train"]["lr"] == "1e-05"
    assert load_params(file).train.lr == 0.00001


def test_a_whole_number_serves_as_a_float(tmp_path):
    assert load_params(write(tmp_path, {"train.rotation": 15})).train.rotation == 15.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.droput": 0.5}, "train.droput: unknown param, did you mean dropout?"),
        ({"train.zzz": 1}, "train.zzz: unknown param; known are model, channels"),
        ({"train.dropout": "high"}, "train.dropout: must be a valid number, got 'high'"),
        ({"train.dropout": True}, "train.dropout: must be a valid number, got True"),
        ({"train.dropout": 1.0}, "train.dropout: must be less than 1, got 1.0"),
        ({"train.lr": float("nan")}, "train.lr: must be a finite number, got nan"),
        ({"train.epochs": 2.5}, "train.epochs: must be a valid integer, got 2.5"),
        ({"train.epochs": "3"}, "train.epochs: must be a valid integer, got '3'"),
        ({"train.channels": [8, "x"]}, "train.channels.1: must be a valid integer, got 'x'"),
        (
            {"train.model": "vgg"},
            "train.model: must be resnet, resnet_stride16, resnet_nopool, cnn, cnn0, cnn1, cnn2, cnn3 or "
            "torchvision/<name>, got 'vgg'",
        ),
        ({"train.model": "torchvision/"}, "or torchvision/<name>, got 'torchvision/'"),
        ({"train.model": 1}, "train.model: must be a valid string, got 1"),
        (
            {"train.model": "torchvision/resnet18", "train.channels": [8]},
            "train: model=torchvision/resnet18 has blocks of its own: channels and hidden must be null",
        ),
        (
            {"train.pretrained": True},
            "train: no weights come with model=resnet_stride16: pretrained must be false",
        ),
        (
            {"train.model": "torchvision/resnet18", "train.pretrained": True, "train.optimizer": "muon"},
            "train: optimizer=muon scales the convolutions anew: pretrained ones need sgd or adamw",
        ),
        ({"train.model": "cnn"}, "train: model=cnn needs channels and hidden"),
        ({"train.batch_size": 1}, "train.batch_size: must be greater than or equal to 2, got 1"),
        ({"train.hidden": 8}, "train: model=resnet_stride16 has no hidden layer: hidden must be null"),
        ({"data.source": "folder"}, "data: source=folder needs folder"),
        ({"split.fold": 5}, "split: fold 5 does not exist: 5 folds are 0 to 4"),
        ({"evaluate.resamples": 10}, "evaluate.resamples: must be greater than or equal to 100, got 10"),
        ({"evaluate.border": 0.5}, "evaluate.border: must be less than 0.5, got 0.5"),
        ({"evaluate.scales": [1, 9]}, "evaluate.scales.1: must be less than or equal to 4, got 9"),
        ({"preprocess.crop": "yes"}, "preprocess.crop: must be a valid boolean, got 'yes'"),
    ],
)
def test_a_wrong_param_is_one_line_that_names_it(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        load_params(write(tmp_path, changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_param_or_section_is_named(tmp_path):
    file = write(tmp_path, {})
    content = yaml.safe_load(file.read_text())
    del content["train"]["seed"], content["evaluate"]
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"train\.seed: missing; evaluate: missing"):
        load_params(file)


@pytest.mark.parametrize("text", ["a: [1", "", "- 1", "\xff"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text):
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        load_params(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml: cannot be read"):
        load_params(tmp_path / "params.yaml")
