"""Make the table of patients again, with each tumour's box and outline, from its primary source.

FOLDER holds the unpacked .mat files of Cheng's brain tumor dataset, doi.org/10.6084/m9.figshare.1512427.
Each image of the manifest that shows one of its slices gets a line: who it is, which slice it is, and where
the tumour lies.
"""

import argparse
import inspect
import re
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import contourpy
import h5py
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from braintumor.copies import DECODED, mirrored, signature
from braintumor.errors import UserError
from braintumor.files import replacing_file
from braintumor.images import UnreadableImageError, read_image, to_grey

SLICES = 3064  # in Cheng's set
SOURCE = """\
# Source: Cheng, Jun (2017): brain tumor dataset. figshare. https://doi.org/10.6084/m9.figshare.1512427
# Licence: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
"""  # head of every table made from it: the licence asks for both
COLUMNS = ["path", "patient", "figshare_index", "mirrored", "left", "top", "right", "bottom", "outline"]


@dataclass(frozen=True)
class Slice:
    """One slice of Cheng's set.

    Attributes
    ----------
    code : str
        Of the patient.
    grey : ndarray of shape (rows, columns), uint8
        Upright, stretched from its smallest to its largest value.
    mask : ndarray of shape (rows, columns), bool
        True inside the tumour.
    """

    code: str
    grey: np.ndarray
    mask: np.ndarray


def read_slice(path: Path) -> Slice:
    """Read one of Cheng's files: MATLAB 7.3, which is HDF5, with a struct ``cjdata``."""
    try:
        with h5py.File(path) as file:
            missing = [name for name in ("PID", "image", "tumorMask") if f"cjdata/{name}" not in file]
            if missing:
                raise UserError(f"{path} has no cjdata/{missing[0]}: it is not a file of Cheng's dataset")
            # MATLAB stores by columns, so HDF5 shows every matrix transposed.
            code, image, mask = (file[f"cjdata/{name}"][()].T for name in ("PID", "image", "tumorMask"))
    # h5py raises a KeyError, RuntimeError or TypeError too, by where the damage is.
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as HDF5 (MATLAB 7.3), download it again if it is damaged: {reason}"
        ) from error
    if image.ndim != 2 or image.shape != mask.shape:
        raise UserError(f"{path} has an image of shape {image.shape} and a tumorMask of shape {mask.shape}")
    code = "".join(chr(character) for character in code.ravel()).strip("\0 ")
    if not code:
        raise UserError(f"{path} has an empty patient code (cjdata/PID)")
    return Slice(code, to_grey(Image.fromarray(image.astype(np.int32))), mask > 0)


def number_patients(codes: list[str]) -> np.ndarray:
    """Give each person a number, from 1 in the order of their codes.

    Codes that differ only in a trailing letter are taken as one person: where that is wrong, two people stay
    together in a split, which costs little; the other way round one person could be on both of its sides.

    Parameters
    ----------
    codes : list of n str

    Returns
    -------
    ndarray of shape (n,), int
    """
    people = [re.sub(r"(?<=.)[A-Za-z]$", "", code) for code in codes]
    return np.unique(people, return_inverse=True)[1] + 1


def tumour_box(mask: np.ndarray) -> np.ndarray:
    """Return left, top, right and bottom of a mask, as fractions of its width and height.

    Parameters
    ----------
    mask : ndarray of shape (rows, columns), bool

    Returns
    -------
    ndarray of shape (4,), float64
        From the outer edges of the outermost pixels; NaN for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.full(4, np.nan)
    height, width = mask.shape
    return np.array([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


def tumour_outline(mask: np.ndarray, points: int = 64) -> np.ndarray:
    """Trace the outline of a mask's largest part.

    Parameters
    ----------
    mask : ndarray of shape (rows, columns), bool
    points : int
        Of a longer outline as many are kept, evenly spaced.

    Returns
    -------
    ndarray of shape (n, 2), float64
        x and y as fractions of width and height; the last point joins the first. Empty for an empty mask.
    """
    # The margin of one pixel closes outlines at the image's edge and adds 1 to every coordinate; contours
    # count from the middle of the first pixel, which takes 0.5 off.
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    if not lines:
        return np.empty((0, 2))
    line = max(lines, key=len)[:-1]
    if len(line) > points:
        line = line[np.arange(points) * len(line) // points]
    return (line - 0.5) / mask.shape[::-1]


def match(
    signatures: np.ndarray, slices: np.ndarray, threshold: float, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Find the slice that each image shows.

    Images are compared as they are and mirrored left-right. The other two ways of `copies.similarity` are
    left out: no image of the dataset is a slice upside down, and the column mirrored could not say so.

    Parameters
    ----------
    signatures : ndarray of shape (n, 1024), float32
        Of the images, from `copies.signature`.
    slices : ndarray of shape (m, 1024), float32
        Signatures of the slices.
    threshold : float
        An image and a slice more similar than this are the same.
    block : int
        Images compared at a time.

    Returns
    -------
    index : ndarray of shape (n,), int
        Of the most similar slice; -1 where none is similar enough.
    flipped : ndarray of shape (n,), bool
        Whether the image is that slice mirrored left-right.
    """
    index, flipped = np.full(len(signatures), -1), np.zeros(len(signatures), bool)
    for start in range(0, len(signatures), block):
        views = islice(mirrored(signatures[start : start + block]), 2)
        as_it_is, left_right = (view @ slices.T for view in views)
        similarity = np.maximum(as_it_is, left_right)
        best = similarity.argmax(axis=1)
        rows = np.arange(len(best))
        index[start : start + block] = np.where(similarity[rows, best] > threshold, best, -1)
        flipped[start : start + block] = left_right[rows, best] > as_it_is[rows, best]
    return index, flipped


def locate(box: np.ndarray, outline: np.ndarray, flipped: bool) -> list[float | str]:
    """Return a table's last five columns: the box, and the outline as text, mirrored with the image."""
    if flipped:
        left, top, right, bottom = box
        box = np.array([1 - right, top, 1 - left, bottom])
        outline = np.column_stack([1 - outline[:, 0], outline[:, 1]])
    return [*box.round(4), " ".join(f"{value:.3f}" for value in outline.ravel())]


def find_files(folder: Path) -> dict[int, Path]:
    """Find ``1.mat``, ``2.mat`` and so on in a folder and those below it.

    Other names are no slices, such as Cheng's ``cvind.mat``.

    Returns
    -------
    dict of int to Path
        In the order of their numbers.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one with Cheng's unpacked .mat files")
    files: dict[int, Path] = {}
    for path in sorted(folder.rglob("*.mat")):
        if re.fullmatch(r"[0-9]+", path.stem):
            other = files.setdefault(int(path.stem), path)
            if other != path:
                raise UserError(f"{other} and {path} have the same number: keep one of them")
    if not files:
        raise UserError(f"{folder} holds no numbered .mat file: unpack the zips of Cheng's dataset into it")
    return dict(sorted(files.items()))


def read_signatures(raw: Path, paths: list[str]) -> np.ndarray:
    """Read the images' signatures, of shape (n, 1024); an unreadable image has zeros, which match nothing."""
    signatures = []
    for path in tqdm(paths, desc="images", disable=None):
        try:
            signatures.append(signature(read_image(raw / path, at_least=DECODED).grey))
        except UnreadableImageError:
            signatures.append(signature(np.zeros((1, 1), np.uint8)))
        except FileNotFoundError as error:
            raise UserError(f"{raw / path} is in the manifest but does not exist: check --raw") from error
    return np.stack(signatures)


def read_paths(manifest: Path) -> list[str]:
    """Read the column path of the manifest."""
    try:
        paths = pd.read_csv(manifest, dtype=str, usecols=["path"])["path"].tolist()
    except FileNotFoundError as error:
        raise UserError(
            f"{manifest} does not exist: `dvc repro` makes it, or name another by --manifest"
        ) from error
    except ValueError as error:
        raise UserError(f"{manifest} is not a csv with a column path") from error
    if not paths:
        raise UserError(f"{manifest} lists no image")
    return paths


def make_table(folder: Path, manifest: Path, raw: Path, output: Path, similarity: float) -> None:
    """Read slices and images, match them, write the table and say in three lines what came out."""
    if not 0 < similarity < 1:
        raise UserError(f"--similarity is {similarity}, but must lie between 0 and 1")
    files, paths = find_files(folder), read_paths(manifest)
    codes, slices, boxes, outlines = [], [], [], []
    for path in tqdm(files.values(), desc="slices", disable=None):
        item = read_slice(path)
        codes.append(item.code)
        slices.append(signature(item.grey))
        boxes.append(tumour_box(item.mask))
        outlines.append(tumour_outline(item.mask))
    index, flipped = match(read_signatures(raw, paths), np.stack(slices), similarity)

    patients, numbers = number_patients(codes), list(files)
    rows = [
        [path, patients[i], numbers[i], int(flip), *locate(boxes[i], outlines[i], flip)]
        for path, i, flip in zip(paths, index, flipped, strict=True)
        if i >= 0
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("path")
    with replacing_file(output) as beside:
        beside.write_text(SOURCE + table.to_csv(index=False, lineterminator="\n"), encoding="utf-8")

    print(f"{len(files)} of {SLICES} slices read, of {patients.max()} people")
    print(f"{len(table)} of {len(paths)} images matched, {table.mirrored.sum()} of them mirrored left-right")
    print(f"{len(paths) - len(table)} images match no slice; {output} does not list them")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error of the user's is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m braintumor.figshare", description=inspect.getdoc(sys.modules[__name__])
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with 1.mat to 3064.mat, in it or below it")
    parser.add_argument("--manifest", type=Path, default=Path("data/manifest.csv"), help="csv, column path")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder that the paths start from")
    parser.add_argument("--output", type=Path, default=Path("data/figshare.csv"), help="csv to write")
    parser.add_argument("--similarity", type=float, default=0.99, help="above it two pictures are the same")
    try:
        make_table(**vars(parser.parse_args(arguments)))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
