"""Say what scans show, with a trained model. Research only, not a medical device.

PATH is a file, a folder (all scans in it, at any depth) or a glob in quotes. A scan is any picture that Pillow
opens, DICOM (.dcm, .dicom or by its first bytes; rescaled and windowed as the file says, of several frames too)
or NIfTI (.nii, .nii.gz; across the axis with the widest spacing). Each becomes the grey square that training made
of its images.

Probabilities are calibrated. An image that is unlike the training images is marked so and given no class; novelty
says how far from them it is, and 1 is the limit. What cannot be read is a line on stderr, and exit code 1 at the
end.
"""

import argparse
import csv
import glob
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import braintumor
from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.images import UnreadableImageError
from braintumor.predictor import Prediction, Predictor
from braintumor.scans import is_scan, read_slices

BATCH = 64  # images that go through the network at a time


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture of a file.

    Attributes
    ----------
    image : str
        Path of the file.
    slice : int or None
        Which one of a volume, from 1.
    square : ndarray of shape (size, size), uint8
        What the network was given.
    prediction : Prediction
    """

    image: str
    slice: int | None
    square: np.ndarray
    prediction: Prediction


def find_scans(place: str, problems: list[str]) -> list[Path]:
    """List the files that a path on the command line stands for, by name.

    Parameters
    ----------
    place : str
        A file, a folder, or a pattern, which passes over folders that cannot be read.
    problems : list of str
        What cannot be read in a folder is appended.

    Raises
    ------
    UserError
        If there are none.
    """
    path = Path(place)
    # A file whose name looks like a pattern is a file.
    found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(place, recursive=True))]  # noqa: PTH207
    if not found:
        raise UserError(f"{place}: no such file")
    files: list[Path] = []
    unreadable: list[str] = []
    for match in found:
        if match.is_dir():
            files += [file for file in walk(match, unreadable) if is_scan(file)]
        else:
            files.append(match)
    if not files and not unreadable:
        raise UserError(f"{place}: has no scan in it")
    problems += dict.fromkeys(unreadable)  # `**` matches a folder and what is in it
    return list(dict.fromkeys(files))


def walk(folder: Path, unreadable: list[str]) -> list[Path]:
    """List the files of a folder at any depth, by name; links are followed, as in the training data, once each.

    Parameters
    ----------
    folder : Path
    unreadable : list of str
        What cannot be read in it is appended.
    """

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename}: {error.strerror}")

    def is_file(path: Path) -> bool:
        try:
            return path.is_file()
        except OSError as error:  # in a folder that may be listed and no more
            note(error)
            return False

    files, seen = [], set()
    for top, names, contents in os.walk(folder, onerror=note, followlinks=True):
        if (place := os.path.realpath(top)) in seen:
            names.clear()
            continue
        seen.add(place)
        names.sort()  # of two ways to one folder the first by name counts
        files += [file for name in contents if is_file(file := Path(top, name))]
    return sorted(files)


def read_squares(
    places: list[str], predictor: Predictor, slices: int | None, problems: list[str]
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Yield path, number of the slice, and grey square of each picture; say on stderr what cannot be read.

    Parameters
    ----------
    places : list of str
        From the command line.
    predictor : Predictor
    slices : int or None
        How many of a volume; None for all.
    problems : list of str
        What could not be read is appended.
    """
    for place in places:
        try:
            files = find_scans(place, problems)
        except UserError as error:
            problems.append(str(error))
            continue
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            problems.append(f"{error.filename or place}: {error.strerror or error}")
            continue
        for file in files:
            try:
                for part in read_slices(file, slices, predictor.decoded):
                    yield file.as_posix(), part.number, predictor.square(part.grey)
            except UnreadableImageError as error:
                problems.append(f"{file}: {error}")
            except ModuleNotFoundError as error:
                problems.append(f"{file}: needs {error.name}, which is not installed")
            except OSError as error:
                problems.append(f"{file}: {error.strerror or error}")
            except MemoryError:
                problems.append(f"{file}: is too large for this machine's memory")


def answer(pictures: Iterator[tuple[str, int | None, np.ndarray]], predictor: Predictor) -> list[Answer]:
    """Predict pictures, some at a time."""
    waiting = list(pictures)
    answers = []
    for start in range(0, len(waiting), BATCH):
        part = waiting[start : start + BATCH]
        predictions = predictor.predict_squares(np.stack([square for _, _, square in part]))
        answers += [Answer(*picture, said) for picture, said in zip(part, predictions, strict=True)]
    return answers


def as_json(answers: list[Answer]) -> str:
    """Write answers as json: a list with one object per picture."""
    return json.dumps(
        [
            {
                "image": one.image,
                "slice": one.slice,
                "class": one.prediction.label,
                "probability": one.prediction.probability,
                "unlike_training": one.prediction.unlike_training,
                "novelty": one.prediction.novelty,
                "probabilities": one.prediction.probabilities,
                "logits": one.prediction.logits,
            }
            for one in answers
        ],
        indent=2,
    )


def rows(answers: list[Answer], classes: tuple[str, ...]) -> list[list[str]]:
    """Make the rows of the csv, its header first; an image unlike the training images has no probabilities."""
    header = ["image", "slice", "class", "probability", "unlike_training", "novelty"]
    table = [header + [f"calibrated_{name}" for name in classes]]
    for one in answers:
        said = one.prediction
        shares = [said.probabilities[name] if said.probabilities else None for name in classes]
        numbers = ["" if number is None else f"{number:.6g}" for number in (said.probability, *shares)]
        table.append(
            [
                one.image,
                "" if one.slice is None else str(one.slice),
                said.label or "",
                numbers[0],
                str(said.unlike_training),
                f"{said.novelty:.4g}",
                *numbers[1:],
            ]
        )
    return table


def as_text(answers: list[Answer], classes: tuple[str, ...]) -> str:
    """Write answers as a table for people."""
    table = [["image", "class", *classes, "novelty"]]
    for one in answers:
        said = one.prediction
        name = one.image if one.slice is None else f"{one.image} slice {one.slice}"
        shares = [f"{100 * said.probabilities[name]:.1f}%" if said.probabilities else "-" for name in classes]
        table.append([name, said.label or "unlike the training images", *shares, f"{said.novelty:.2f}"])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join([*lines, "", "Research only, not a medical device."])


def save_overlays(answers: list[Answer], model: Path, folder: Path) -> None:
    """Write what speaks for the class of each picture, see `braintumor.overlay`, as a PNG.

    It lies in the folders of the picture's own path, below `folder`. An image unlike the training images has no
    class, so it has none.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    from braintumor.overlay import draw_overlays  # here, since only this needs torch whatever the model is
    from braintumor.weights import load_model

    known = [one for one in answers if one.prediction.label is not None]
    if not known:
        return
    squares = np.stack([one.square for one in known])
    labels = [one.prediction.label for one in known]
    network = load_model(model / "model.safetensors", model / "model.json")
    for one, picture in zip(known, draw_overlays(*network, squares, labels), strict=True):
        # Under the folder even where the path starts at the root or goes up.
        parts = ["_" if part == ".." else part for part in Path(one.image).parts if part != "/"]
        file = folder.joinpath(*parts)
        with replacing_file(file.with_name(f"{file.name}{f'_{one.slice:03}' if one.slice else ''}.png")) as beside:
            Image.fromarray(picture).save(beside)


def parse_slices(text: str) -> int | None:
    """Read ``all`` as None and a number from 1 as such."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 or all, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m braintumor.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder or glob")
    parser.add_argument(
        "--model",
        type=Path,
        default=Path("models"),
        help="the pipeline's folder of models, or its model.onnx, which needs no torch (default: models)",
    )
    parser.add_argument(
        "--slices",
        type=parse_slices,
        default=5,
        metavar="N",
        help="of a volume: so many slices, evenly from its middle half, or all (default: 5)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print json, with the network's logits")
    form.add_argument("--csv", action="store_true", help="print csv")
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="DIR",
        help="write what speaks for each class as pictures (Grad-CAM) into DIR",
    )
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a file's name may be in another encoding
        stream.reconfigure(errors="backslashreplace")
    problems: list[str] = []
    try:
        if arguments.overlay and arguments.model.suffix == ".onnx":
            raise UserError("--overlay: Grad-CAM needs torch and the weights; give --model the folder of models")
        predictor = braintumor.load(arguments.model)
        answers = answer(read_squares(arguments.paths, predictor, arguments.slices, problems), predictor)
    except UserError as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        print(as_json(answers))
    elif arguments.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows(answers, predictor.classes))
    elif answers:
        print(as_text(answers, predictor.classes))
    if arguments.overlay:
        try:
            save_overlays(answers, arguments.model, arguments.overlay)
        except OSError as error:
            file = f" ({error.filename})" if error.filename else ""
            problems.append(f"--overlay {arguments.overlay}: {error.strerror or error}{file}")
        except UserError as error:
            problems.append(f"--overlay: {error}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
