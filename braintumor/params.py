"""The params of every stage, typed: a misspelt or ill-typed one is an error before any work."""

import difflib
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from braintumor.errors import UserError


def _exponent(value: object) -> object:
    """Read ``1e-05`` as a number: DVC's ``-S train.lr=1e-5`` writes it so, and YAML 1.1 takes it for text."""
    number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if number else value


def _network(value: str) -> str:
    """Let the name of a network through; whether torchvision has it, only torchvision can say."""
    own = ("resnet", "resnet_stride16", "resnet_nopool", "cnn", "cnn0", "cnn1", "cnn2", "cnn3")
    if value not in own and not re.fullmatch(r"torchvision/[a-z0-9_]+", value):
        raise ValueError(f"must be {', '.join(own)} or torchvision/<name>, got {value!r}")
    return value


Number = Annotated[float, BeforeValidator(_exponent)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Auto, or what is in the second place; told apart by hand so that an error speaks of one of them only.
AUTO = Discriminator(lambda value: "auto" if value == "auto" else "value")
AutoOrRate = Annotated[Annotated[Literal["auto"], Tag("auto")] | Annotated[Positive, Tag("value")], AUTO]
Device = Literal["auto", "cpu", "cuda"]


class Section(BaseModel):
    """Params of one stage: all must be there, no others may be, nothing is converted between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """Params of the stage download."""

    source: Literal["kaggle", "folder", "phantom"]
    dataset: Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+$")]
    version: Count
    images: Count | None
    folder: str | None
    phantom_patients: Annotated[int, Field(ge=8)]
    seed: Seed

    @model_validator(mode="after")
    def _folder_named(self) -> "Data":
        if self.source == "folder" and not self.folder:
            raise ValueError("source=folder needs folder, the path of a folder or zip with one folder per class")
        return self


class Audit(Section):
    """Params of the stage audit."""

    similarity: Annotated[Number, Field(gt=0, lt=1)]
    patients: str | None
    max_pixels: Count
    max_quarantined: Share


class Preprocess(Section):
    """Params of the stage preprocess."""

    size: Annotated[int, Field(ge=16, le=2048)]
    crop: bool
    fit: Literal["stretch", "letterbox"]


class Split(Section):
    """Params of the stage split."""

    protocol: Literal["grouped", "official", "copy_free", "seed", "source"]
    group_by: Literal["patient", "copy"]
    source: Literal["square512", "mode", "patient_known"]
    folds: Annotated[int, Field(ge=2)]
    fold: Annotated[int, Field(ge=0)]
    validation_folds: Annotated[int, Field(ge=2)]
    seed: Seed

    @model_validator(mode="after")
    def _fold_exists(self) -> "Split":
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: {self.folds} folds are 0 to {self.folds - 1}")
        return self


class LrRange(Section):
    """Params of the stage lr_range."""

    start: Positive
    end: Positive
    steps: Annotated[int, Field(ge=10)]
    smoothing: Annotated[Number, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _rises(self) -> "LrRange":
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} must be below end {self.end:g}")
        return self


class Train(Section):
    """Params of the stage train."""

    model: Annotated[str, AfterValidator(_network)]
    channels: Annotated[list[Count], Field(min_length=1)] | None
    hidden: Count | None
    pretrained: bool
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    accumulation: Count
    optimizer: Literal["sgd", "adamw", "muon"]
    lr: AutoOrRate
    body_lr: Share
    frozen_epochs: Annotated[int, Field(ge=0)]
    schedule: Literal["cosine", "constant"]
    warmup: Share
    weight_decay: Annotated[Number, Field(ge=0)]
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]
    balance: Share
    distinct: bool
    flip: Share
    shift: Share
    rotation: Annotated[Number, Field(ge=0, le=180)]
    scale: Annotated[Number, Field(ge=0)]
    brightness: Share
    contrast: Share
    averaging: Annotated[Number, Field(ge=0, lt=1)]
    patience: Count | None
    seed: Seed
    device: Device
    precision: Literal["auto", "float32", "bfloat16"]
    threads: Count
    compile: bool
    launcher: Annotated[str, Field(min_length=1)]
    sync_batch_norm: bool

    @model_validator(mode="after")
    def _architecture_whole(self) -> "Train":
        if self.model == "cnn" and (self.channels is None or self.hidden is None):
            raise ValueError("model=cnn needs channels and hidden")
        if self.model.startswith("resnet") and self.hidden is not None:
            raise ValueError(f"model={self.model} has no hidden layer: hidden must be null")
        if self.frozen_epochs >= self.epochs:
            raise ValueError(f"frozen_epochs {self.frozen_epochs} leaves none of {self.epochs} epochs to the body")
        of_torchvision = self.model.startswith("torchvision/")
        if of_torchvision and (self.channels is not None or self.hidden is not None):
            raise ValueError(f"model={self.model} has blocks of its own: channels and hidden must be null")
        if self.pretrained and not of_torchvision:
            raise ValueError(f"no weights come with model={self.model}: pretrained must be false")
        if self.pretrained and self.optimizer == "muon":
            raise ValueError("optimizer=muon scales the convolutions anew: pretrained ones need sgd or adamw")
        return self


class Evaluate(Section):
    """Params of the stages calibrate and evaluate."""

    batch_size: Count
    device: Device
    threads: Count
    resamples: Annotated[int, Field(ge=100)]
    seed: Seed
    bins: Annotated[int, Field(ge=2)]
    negative: str | None
    border: Annotated[Number, Field(gt=0, lt=0.5)]
    flips: bool
    scales: list[Annotated[Number, Field(ge=0.25, le=4)]]
    smallest_subgroup: Count


class Export(Section):
    """Params of the stage export."""

    flagged: Annotated[Number, Field(gt=0, lt=1)]
    phantom_patients: Annotated[int, Field(ge=8)]
    resamples: Count
    batch_size: Count
    threads: Count
    seed: Seed


class Explain(Section):
    """Params of the stage explain."""

    layer: Annotated[str, Field(min_length=1)]
    samples: Count
    boxes: str | None
    border: Annotated[Number, Field(gt=0, lt=0.5)]
    shuffles: Count
    shuffled_images: Count
    resamples: Count
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    batch_size: Count
    device: Device
    threads: Count


class Report(Section):
    """Params of the stage report."""

    gallery: Count


class Params(Section):
    """All of params.yaml."""

    data: Data
    audit: Audit
    preprocess: Preprocess
    split: Split
    lr_range: LrRange
    train: Train
    evaluate: Evaluate
    explain: Explain
    export: Export
    report: Report


T = TypeVar("T")


def pick(kind: type[T], section: Section) -> T:
    """Fill a dataclass with the params of the same names."""
    return kind(**{field.name: getattr(section, field.name) for field in fields(kind)})


# Params that were added when results lay about already, each with the value that does what was done before.
CAME_LATER = {"train.distinct": False}


def with_later(content: dict[str, dict]) -> dict[str, dict]:
    """Complete an older params.yaml by the params that came later."""
    completed = {section: dict(values) for section, values in content.items()}
    for name, value in CAME_LATER.items():
        section, param = name.split(".")
        if section in completed:
            completed[section].setdefault(param, value)
    return completed


def without_later(content: dict[str, dict]) -> dict[str, dict]:
    """Leave out the params that came later where they do what was done before."""
    return {
        section: {
            name: value for name, value in values.items() if (f"{section}.{name}", value) not in CAME_LATER.items()
        }
        for section, values in content.items()
    }


def with_overrides(content: dict, overrides: dict[str, Any]) -> Params:
    """Return the params of a params.yaml with some values replaced, by names such as ``train.lr``.

    Raises
    ------
    ValidationError, ValueError
        If there is no such param, or if it does not take such a value.
    """
    changed = {section: dict(values) for section, values in content.items()}
    for name, value in overrides.items():
        section, _, param = name.partition(".")
        if param not in changed.get(section, {}):
            raise ValueError(f"{name}: no such param")
        changed[section][param] = value
    return Params.model_validate(changed)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of YAML that names settings.

    Raises
    ------
    UserError
        If the file is missing, or is not YAML or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: has no settings by name")
    return content


def load_params(path: Path) -> Params:
    """Read and check params.yaml as a whole.

    Raises
    ------
    UserError
        If the file is missing, is not YAML, lacks a param, or has an unknown or ill-typed one.
    """
    content = read_settings(path)
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise UserError(f"{path}: {'; '.join(problems)}") from None


def _explain(problem: dict) -> str:
    """Say one of pydantic's findings as ``train.dropout: what is wrong``."""
    location = [part for part in problem["loc"] if part not in ("auto", "value")]
    where = ".".join(str(part) for part in location) or "the file"
    match problem["type"]:
        case "extra_forbidden":
            return f"{where}: unknown param{_suggest(problem['loc'])}"
        case "missing":
            return f"{where}: missing"
        case "value_error":
            return f"{where}: {problem['ctx']['error']}"
    message = problem["msg"].removeprefix("Input ").replace("should", "must")
    return f"{where}: {message}, got {problem['input']!r}"


def _suggest(location: tuple) -> str:
    model: type[BaseModel] = Params
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, 1)
    return f", did you mean {close[0]}?" if close else f"; known are {', '.join(model.model_fields)}"


if __name__ == "__main__":
    try:
        load_params(Path("params.yaml"))
    except UserError as error:
        sys.exit(f"error: {error}")
