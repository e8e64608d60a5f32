"""Reading an image file into a grey array, whatever its mode, bit depth or orientation."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from braintumor.files import replacing_file

# Pillow's own limit warns on stderr or raises, by size; `max_pixels` below is checked in its place.
Image.MAX_IMAGE_PIXELS = None

# Modes of more than 8 bits a pixel: their values have no fixed white, so they are scaled by their own range.
_WIDE_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


class UnreadableImageError(Exception):
    """The file cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class ReadImage:
    """A decoded image.

    Attributes
    ----------
    grey : ndarray of shape (rows, columns), uint8
        Upright, 0 black to 255 white.
    width, height : int
        Of the file, in pixels, before its EXIF orientation is applied.
    mode : str
        Pillow's name of the file's mode, such as ``"RGB"`` or ``"I;16"``.
    format : str
        What the bytes are, such as ``"JPEG"``, whatever the file's name says.
    """

    grey: np.ndarray
    width: int
    height: int
    mode: str
    format: str


def read_image(path: Path, at_least: int | None = None, max_pixels: int | None = None) -> ReadImage:
    """Read and decode an image file; see `decode_image`."""
    return decode_image(path.read_bytes(), at_least, max_pixels)


def decode_image(content: bytes, at_least: int | None = None, max_pixels: int | None = None) -> ReadImage:
    """Decode the bytes of an image file completely.

    Parameters
    ----------
    content : bytes
        Any format that Pillow reads; the first frame counts.
    at_least : int, optional
        A JPEG may be decoded at a half, a quarter or an eighth of its size as long as both sides keep this
        many pixels: several times faster, and the same as block means of the whole.
    max_pixels : int, optional
        Larger images are refused before they are decoded.

    Raises
    ------
    UnreadableImageError
        If there are no bytes, or they are truncated, no image or over the limit.
    """
    if not content:
        raise UnreadableImageError("empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height, mode, format_ = *image.size, image.mode, image.format or ""
            if max_pixels is not None and width * height > max_pixels:
                raise UnreadableImageError(f"{width} x {height} is over the limit of {max_pixels} pixels")
            if at_least is not None:
                image.draft("L", (at_least, at_least))
            image.load()
            grey = to_grey(ImageOps.exif_transpose(image))
    except (UnreadableImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image") from None
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more for bad bytes.
    except Exception as error:
        raise UnreadableImageError(" ".join((str(error) or type(error).__name__).split())) from error
    return ReadImage(grey, width, height, mode, format_)


def to_grey(image: Image.Image) -> np.ndarray:
    """Turn an image of any mode into grey.

    Palettes are looked up, transparent pixels lie over black, and images of more than 8 bits are stretched from
    their own smallest to their own largest finite value (a constant one becomes black).

    Returns
    -------
    ndarray of shape (rows, columns), uint8
    """
    if image.mode in _WIDE_MODES:
        values = np.asarray(image).astype(np.float64)
        finite = np.isfinite(values)
        if not finite.any():
            raise UnreadableImageError("no finite pixel")
        low, high = values[finite].min(), values[finite].max()
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        scale = 255 / (high - low) if high > low else 0.0
        return np.rint((values - low) * scale).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.asarray(image)


def head_bounds(grey: np.ndarray, threshold: int = 20) -> tuple[slice, slice]:
    """Return the rows and columns that hold the head.

    They run from the first to the last whose brightest values (98th percentile, so that single bright pixels
    do not count) pass `threshold`; an image that never does is left whole.

    Parameters
    ----------
    grey : ndarray of shape (rows, columns), uint8
    threshold : int
        Grey value, 0 to 255.
    """
    rows = np.flatnonzero(np.percentile(grey, 98, axis=1) > threshold)
    columns = np.flatnonzero(np.percentile(grey, 98, axis=0) > threshold)
    if not len(rows) or not len(columns):
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def crop_head(grey: np.ndarray, threshold: int = 20) -> np.ndarray:
    """Cut away the dark margin around the head; see `head_bounds`."""
    return grey[head_bounds(grey, threshold)]


def resize_square(grey: np.ndarray, size: int, letterbox: bool = False) -> np.ndarray:
    """Resize to a square, with an antialiasing bilinear filter.

    Parameters
    ----------
    grey : ndarray of shape (rows, columns), uint8
    size : int
        Side of the result, in pixels.
    letterbox : bool
        Keep the aspect ratio and pad with black, where False stretches.

    Returns
    -------
    ndarray of shape (size, size), uint8
    """
    image = Image.fromarray(grey)
    if not letterbox:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = image.resize((width, height), Image.Resampling.BILINEAR)
    return square


def load_squares(files: list[Path], target: Path, size: int, crop: bool, letterbox: bool, workers: int) -> None:
    """Decode many images into one memory-mapped array of grey squares.

    Parameters
    ----------
    files : list of n Path
    target : Path
        The ``.npy`` file to write: uint8 of shape (n, size, size).
    size : int
        Side, in pixels.
    crop : bool
        Cut away the dark margin around the head first.
    letterbox : bool
        Keep the aspect ratio and pad with black, where False stretches.
    workers : int
        Threads; Pillow lets go of the interpreter while it decodes and resizes.
    """

    def load(row: int) -> None:
        # A crop leaves fewer pixels than were decoded, so it takes the whole image.
        grey = read_image(files[row], at_least=None if crop else size).grey
        array[row] = resize_square(crop_head(grey) if crop else grey, size, letterbox)

    with replacing_file(target) as beside, ThreadPoolExecutor(workers) as pool:
        array = np.lib.format.open_memmap(beside, "w+", np.uint8, (len(files), size, size))
        if hasattr(os, "posix_fallocate"):
            # Else a disk that is full would end the process, without a word, amid the writing.
            with beside.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, beside.stat().st_size)
        rows = range(len(files))
        for _ in tqdm(pool.map(load, rows), "decoding", len(files), unit="image", disable=None):
            pass
        array.flush()
