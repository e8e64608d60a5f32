"""Where tumours are known to lie: boxes and masks of the images, brought into their grey squares."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from braintumor.errors import UserError
from braintumor.images import UnreadableImageError, head_bounds, read_image, resize_square

EDGES = ["left", "top", "right", "bottom"]


def read_boxes(file: Path) -> pd.DataFrame:
    """Read a csv of tumours' boxes, such as `braintumor.figshare` writes; comments (#) may stand above its header.

    Returns
    -------
    DataFrame with index path and columns left, top, right, bottom
        Fractions of the upright image's width and height, 0 to 1.

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column, names an image twice, or has a box that is none.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            comments = sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), lines))
        table = pd.read_csv(file, skiprows=comments, usecols=["path", *EDGES], dtype={"path": str})
        boxes = table.set_index("path")[EDGES].astype(float).dropna()
    except OSError as error:
        raise UserError(f"explain.boxes: {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"explain.boxes: {file} is no csv of path, {', '.join(EDGES)}: {reason}") from None
    if boxes.index.has_duplicates:
        raise UserError(f"explain.boxes: {file} names {boxes.index[boxes.index.duplicated()][0]} twice")
    inside = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1)
    wrong = boxes[~inside | (boxes["left"] >= boxes["right"]) | (boxes["top"] >= boxes["bottom"])]
    if len(wrong):
        raise UserError(
            f"explain.boxes: {file} has the box {wrong.iloc[0].tolist()} for {wrong.index[0]}: left, top, "
            "right and bottom must be fractions, 0 to 1, and rise"
        )
    return boxes


def find_tumours(
    source: Path, raw: Path, paths: list[str], size: int, crop: bool, letterbox: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Say which pixels of the grey squares are tumour, for the images of which it is known.

    Parameters
    ----------
    source : Path
        A csv of boxes, or a folder of masks: an image with the folders and the stem of the image's own path, as
        large as it, bright where the tumour is.
    raw : Path
        Folder that the paths start from. The images are read only where the square depends on them.
    paths : list of n str
    size, crop, letterbox
        How an image becomes a square; see `images.load_squares`.

    Returns
    -------
    rows : ndarray of shape (m,), int
        Of `paths`.
    masks : ndarray of shape (m, size, size), bool
        None is empty.

    Raises
    ------
    UserError
        If nothing is known about any of the images, or a mask cannot be read or has another size.
    """
    boxes = None if source.is_dir() else read_boxes(source)
    rows, masks = [], []
    for row, path in enumerate(paths):
        mask_file = (source / path).with_suffix(".png")
        if not (mask_file.is_file() if boxes is None else path in boxes.index):
            continue
        # Where the square is the whole image stretched, a fraction of the one is a fraction of the other.
        grey = _read(raw / path) if crop or letterbox else np.zeros((size, size), np.uint8)
        mask = _read(mask_file) if boxes is None else fill_box(boxes.loc[path].to_numpy(), grey.shape)
        if boxes is None and 0 < mask.max() <= 127:
            raise UserError(f"explain.boxes: {mask_file} is black but for {mask.max()}: white, 255, is the tumour")
        if (crop or letterbox) and mask.shape != grey.shape:
            raise UserError(f"explain.boxes: {mask_file} is not as large as {raw / path}")
        if crop:
            mask = mask[head_bounds(grey)]
        mask = resize_square(mask, size, letterbox) > 127
        if mask.any():
            rows.append(row)
            masks.append(mask)
    if not rows:
        raise UserError(f"explain.boxes: {source} has no tumour of any test image; null where nobody knows them")
    return np.array(rows), np.stack(masks)


def fill_box(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw a box, as fractions of an image's sides, white on black; it has one pixel at least.

    Parameters
    ----------
    box : ndarray of 4 float
        Left, top, right, bottom.
    shape : tuple of int
        Rows and columns.

    Returns
    -------
    ndarray of that shape, uint8
    """
    rows, columns = shape
    left, top = (min(round(edge * side), side - 1) for edge, side in zip(box[:2], (columns, rows), strict=True))
    right, bottom = (round(edge * side) for edge, side in zip(box[2:], (columns, rows), strict=True))
    mask = np.zeros(shape, np.uint8)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = 255
    return mask


def _read(file: Path) -> np.ndarray:
    try:
        return read_image(file).grey
    except (OSError, UnreadableImageError) as error:
        raise UserError(f"explain.boxes: {file} cannot be read: {error}") from None
