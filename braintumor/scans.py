"""Reading a scan from any file: pictures, DICOM (with several frames too) and NIfTI volumes."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from braintumor.images import UnreadableImageError, read_image, to_grey

if TYPE_CHECKING:
    from pydicom import Dataset

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom")
# Of a picture, as audit.max_pixels is to begin with: a file of a few bytes may claim to be one of any size.
MOST_PIXELS = 100_000_000
# Where an enhanced file keeps what an ordinary one has at its top, for all frames or for each.
FRAME_SETTINGS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


@dataclass(frozen=True)
class Slice:
    """One grey picture of a file.

    Attributes
    ----------
    number : int or None
        Which slice of a volume or frame of a film it is, from 1; none where the file holds one picture.
    grey : ndarray of shape (rows, columns), uint8
    """

    number: int | None
    grey: np.ndarray


def is_scan(path: Path) -> bool:
    """Tell by its name whether a file of a folder is meant to be read, or by DICOM's mark in its first bytes."""
    name = path.name.lower()
    if name.startswith("."):
        return False
    if name.endswith((*NIFTI_SUFFIXES, *DICOM_SUFFIXES)):
        return True
    formats = Image.registered_extensions()
    try:
        # DICOM files are often called by a number with dots in it.
        return formats.get(path.suffix.lower()) in Image.OPEN or _has_dicom_mark(path)
    except OSError:  # reading it will say what is wrong
        return True


def read_slices(path: Path, count: int | None, at_least: int | None = None) -> list[Slice]:
    """Read a file as grey pictures.

    Parameters
    ----------
    path : Path
    count : int or None
        How many slices of a volume (see `choose_slices`); None for all.
    at_least : int, optional
        Of ordinary pictures, see `braintumor.images.decode_image`.

    Raises
    ------
    UnreadableImageError
        If the file is damaged or holds something else.
    OSError
        If it cannot be opened.
    """
    name, marked = path.name.lower(), _has_dicom_mark(path)
    if name.endswith(NIFTI_SUFFIXES):
        read = _read_nifti
    elif name.endswith(DICOM_SUFFIXES) or marked:
        read = _read_dicom
    else:
        return [Slice(None, read_image(path, at_least, MOST_PIXELS).grey)]
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a reader finds odd and reads all the same
            return read(path, count)
    except (UnreadableImageError, MemoryError, ModuleNotFoundError):
        raise
    # Readers of many formats raise many errors for bad bytes.
    except Exception as error:
        raise UnreadableImageError(" ".join((str(error) or type(error).__name__).split())) from error


def choose_slices(total: int, count: int | None) -> list[int]:
    """Choose slices of a volume, evenly from its middle half, where the brain is widest.

    From all of it where the half has fewer than `count`; all of them where `count` is None or at least `total`.

    Returns
    -------
    list of int
        Indices from 0, rising.
    """
    if count is None or count >= total:
        return list(range(total))
    first, length = (total / 4, total / 2) if 2 * count <= total else (0, total)
    return [int(first + (i + 0.5) * length / count) for i in range(count)]


def _has_dicom_mark(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_dicom(path: Path, count: int | None) -> list[Slice]:
    import pydicom  # here and below: only those who have such files need to have their readers
    from pydicom.pixels import pixel_array

    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise UnreadableImageError("a DICOM file without a picture")
    pixels = pixel_array(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames == 1 and pixels.ndim == 2 + (dataset.SamplesPerPixel > 1):
        pixels = pixels[None]
    return [
        Slice(i + 1 if frames > 1 else None, _dicom_grey(pixels[i], _settings(dataset, i)))
        for i in choose_slices(frames, count)
    ]


def _settings(dataset: "Dataset", frame: int) -> "Dataset":
    """Return a file's attributes without its pixels, as they hold for one frame."""
    from pydicom import Dataset

    settings = Dataset({tag: element for tag, element in dataset.items() if tag != 0x7FE00010})
    groups = list(dataset.get("SharedFunctionalGroupsSequence", []))
    groups += list(dataset.get("PerFrameFunctionalGroupsSequence", []))[frame : frame + 1]
    for group in groups:
        for name in FRAME_SETTINGS:
            for item in group.get(name, []):
                settings.update(item)
    return settings


def _dicom_grey(pixels: np.ndarray, settings: "Dataset") -> np.ndarray:
    """Turn a frame's stored values into what a viewer would show: rescaled, windowed, white on black.

    Without a window the smallest value is black and the largest white, as in `braintumor.images.to_grey`.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    kind = settings.PhotometricInterpretation
    if pixels.ndim == 3:
        return to_grey(Image.fromarray(pixels))
    if not kind.startswith("MONOCHROME"):
        raise UnreadableImageError(f"a DICOM file of the kind {kind}")
    values = apply_modality_lut(pixels, settings)
    if settings.get("VOILUTSequence"):
        grey = stretch(apply_voi_lut(np.rint(values).astype(np.int64), settings))
    elif settings.get("WindowCenter") is not None and settings.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # a sigmoid's ends
            shown = apply_voi_lut(values.astype(np.float64), settings)
            # What lies far outside the window becomes its black and its white.
            black, white = apply_voi_lut(np.array([-1e30, 1e30]), settings)
        grey = np.rint((shown - black) / (white - black) * 255).astype(np.uint8)
    else:
        grey = stretch(values)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _read_nifti(path: Path, count: int | None) -> list[Slice]:
    """Read slices across the axis with the widest spacing, which is how the volume was taken; axial for a tie.

    They are shown as radiologists see them: front or top of the head above, its right side on the left.
    """
    import nibabel

    image = nibabel.load(path)
    volume = image.dataobj
    if len(volume.shape) < 2 or volume.dtype.fields:
        raise UnreadableImageError(f"no grey volume, but {volume.dtype} of {len(volume.shape)} dimensions")
    if len(volume.shape) == 2:  # only three axes can be put in order
        pixels = np.asarray(volume)[..., None]
        image = nibabel.Nifti1Image(pixels, image.affine, dtype=pixels.dtype)  # 64-bit integers must be named
    image = nibabel.as_closest_canonical(image)
    volume = image.dataobj
    volume = np.asarray(volume[(..., *[0] * (len(volume.shape) - 3))])  # the first of a series
    spacing = np.array(image.header.get_zooms()[:3])
    flat = [axis for axis in range(3) if volume.shape[axis] == 1]
    widest = [axis for axis in range(3) if spacing[axis] >= 0.99 * spacing.max()]
    axis = (flat or widest)[-1]
    # Canonical axes run to the right, to the front and to the top.
    total = volume.shape[axis]
    if not np.isfinite(volume).any():
        raise UnreadableImageError("no finite voxel")
    return [
        Slice(i + 1 if total > 1 else None, stretch(np.flip(np.take(volume, i, axis)).T))
        for i in choose_slices(total, count)
    ]


def stretch(values: np.ndarray) -> np.ndarray:
    """Scale numbers of any type from their own smallest to their own largest, as `braintumor.images.to_grey` does.

    Parameters
    ----------
    values : ndarray of shape (rows, columns)

    Returns
    -------
    ndarray of shape (rows, columns), uint8
        Black where no value is a finite number.
    """
    if not np.isfinite(values).any():
        return np.zeros(values.shape, np.uint8)
    return to_grey(Image.fromarray(np.ascontiguousarray(values, np.float32)))
