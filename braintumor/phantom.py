"""Drawing a stand-in dataset: made-up heads laid out like the real one, with copies for an audit to find."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from braintumor.errors import UserError

CLASSES = GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY = "glioma", "meningioma", "notumor", "pituitary"
SMALLEST = 8  # patients; with fewer, a class or an image mode could be missing from a folder
INNER_SKULL = 0.86  # where the brain's cover begins, as a fraction of the way from the centre to the skin
SELLA = 0.33  # height of the hollow that holds the pituitary gland, in head units below the centre

# The real set's copies are mostly mirror images; the order makes four copies hold every kind.
_KINDS = ("mirrored", "brightened", "mirrored", "identical", "mirrored", "mirrored")

# Limits of what differs from patient to patient: brightness of tissues from 0 to 1, and the scanner's settings.
_TISSUE = {
    "white": (0.42, 0.54),
    "cortex": (0.07, 0.15),  # how much darker grey matter is than white
    "fluid": (0.08, 0.16),
    "scalp": (0.7, 1.0),
    "face": (0.25, 0.5),
    "gain": (0.75, 1.05),
    "bias": (0.15, 0.3),
    "noise": (0.012, 0.03),
}

# Smooth noises and their grain in head units: the cortex's folds, the face, irregular shapes, the coil's bias.
_GRAINS = {"folds": 0.045, "fine": 0.03, "shape": 0.12, "bias": 0.45}


@dataclass(frozen=True)
class _File:
    """One image of the set to be: a slice of a patient, or a planted copy of one."""

    folder: str
    label: str
    patient: int  # from 1
    slice: int
    mode: str
    kind: str | None = None  # of copy
    source: str | None = None  # path that it is a copy of

    @property
    def path(self) -> str:
        mark = "" if self.kind is None else "c"
        return f"{self.folder}/{self.label}/p{self.patient:03d}_s{self.slice}{mark}.jpg"


@dataclass(frozen=True)
class _Patient:
    """What the slices of a patient share.

    Lengths are in head units: 1 is half the image's longer side. All numbers are Python's, as NumPy's own
    would turn the float32 arrays that they meet into float64.
    """

    label: str
    shape: tuple[int, int]  # of the images: rows, columns
    axes: list[float]  # half width and half height of the head
    centre: list[float]
    tilt: float  # radians
    bend: float  # how far the midline is off straight
    outline: list[list[float]]  # amplitude and phase of each harmonic of the skin's outline, from the second
    scalp: float  # thickness
    base: list[float]  # the skull base's height, the depth of the temporal lobes, the width between them
    ventricles: list[float]  # height, half height, half width, distance from the midline
    tissue: dict[str, float]  # see _TISSUE
    lesion: dict[str, float]  # place, size and brightness, each from 0 to 1, and the side: -1 or 1
    drift: list[float]  # of size, centre (2) and ventricles from slice to slice
    fields: dict[str, tuple[np.ndarray, np.ndarray]]  # smooth noise: a pair that the slices move between


@dataclass(frozen=True)
class _Head:
    """Where each pixel of a slice lies; arrays of shape (rows, columns)."""

    x: np.ndarray  # from the midline
    y: np.ndarray  # from the centre, downwards
    radius: np.ndarray  # 0 in the centre, 1 at the skin
    depth: np.ndarray  # inwards from the brain's surface; negative outside the brain
    pixel: float  # size of one
    fields: dict[str, np.ndarray]

    def inside(self, distance: np.ndarray, softness: float = 1.5) -> np.ndarray:
        """Turn a signed distance into a weight from 0 (negative) to 1, with an edge of `softness` pixels."""
        return np.clip(0.5 + distance / (softness * self.pixel), 0, 1)


def make_phantom(target: Path, patients: int, seed: int) -> None:
    """Write a made-up dataset that has the real one's layout, classes, shortcuts and faults.

    Besides ``Training/<class>/`` and ``Testing/<class>/`` there are ``patients.csv`` (path, patient; some
    images without tumour are not in it), ``masks/`` (each lesion as a PNG of 0 and 255, in the same folders
    and under the same stem) and ``copies.csv`` (path, source, kind), which tells what was planted: about half
    of the test images are copies of training images, and one copy contradicts its source's class.

    Parameters
    ----------
    target : Path
        An empty folder, or one that does not exist.
    patients : int
        At least 8; each has four to seven slices.
    seed : int
        The same patients and seed give the same bytes, on the same kind of machine.

    Raises
    ------
    UserError
        If `target` holds something, or `patients` is too small.
    """
    if patients < SMALLEST:
        raise UserError(f"a phantom needs at least {SMALLEST} patients, got {patients}")
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise UserError(f"{target}: is not empty; give the phantom a folder of its own")
    planning, *children = np.random.SeedSequence(seed).spawn(patients + 1)
    files = _plan(patients, np.random.default_rng(planning))
    for number, child in enumerate(children, 1):
        own = [file for file in files if file.patient == number]
        count = sum(file.kind is None for file in own)
        slices = list(_draw_slices(_label(number), count, np.random.default_rng(child)))
        for file in own:
            _write(target, file, *slices[file.slice])
    _write_tables(target, files)


def _label(patient: int) -> str:
    return CLASSES[patient % len(CLASSES)]


# --- What the set holds ---


def _plan(patients: int, rng: np.random.Generator) -> list[_File]:
    """Decide on every file of the set before one is drawn, sorted by path."""
    slices = [(patient, index) for patient in range(1, patients + 1) for index in range(rng.integers(4, 8))]
    modes = rng.permutation(_modes(len(slices)))
    training, testing = [], []
    for label in CLASSES:
        own = rng.permutation([i for i, (patient, _) in enumerate(slices) if _label(patient) == label])
        # A ninth drawn anew and as many copies make Testing a fifth of all images, half of it copies.
        for place, i in enumerate(own):
            folder, files = ("Testing", testing) if place < max(1, len(own) // 9) else ("Training", training)
            files.append(_File(folder, label, *slices[i], str(modes[i])))
    files = training + testing + _copies(training, testing)
    return sorted(files, key=lambda file: file.path)


def _modes(count: int) -> list[str]:
    few = max(1, count // 80)
    grey = count - 2 * few - count // 4
    return ["RGBA"] * few + ["P"] * few + ["RGB"] * (count // 4) + ["L"] * grey


def _copies(training: list[_File], testing: list[_File]) -> list[_File]:
    """Plant as many copies of training images as there are others to test, and the one that contradicts."""
    copies = []
    for label in CLASSES:
        sources = [file for file in training if file.label == label]
        for source in sources[: sum(file.label == label for file in testing)]:
            kind = _KINDS[len(copies) % len(_KINDS)]
            mode = source.mode if kind == "identical" else "L"
            copies.append(_File("Testing", label, source.patient, source.slice, mode, kind, source.path))
    # As in the real set, a meningioma is filed under pituitary a second time. The last has no other copy.
    source = [file for file in training if file.label == MENINGIOMA][-1]
    other = _File("Training", PITUITARY, source.patient, source.slice, "L", "contradictory", source.path)
    return [*copies, other]


def _write_tables(target: Path, files: list[_File]) -> None:
    known = [file for file in files if _label(file.patient) != NOTUMOR or file.patient // len(CLASSES) % 2]
    patients = pd.DataFrame([(file.path, file.patient) for file in known], columns=["path", "patient"])
    planted = [(file.path, file.source, file.kind) for file in files if file.kind is not None]
    copies = pd.DataFrame(planted, columns=["path", "source", "kind"])
    patients.to_csv(target / "patients.csv", index=False, lineterminator="\n")
    copies.to_csv(target / "copies.csv", index=False, lineterminator="\n")


def _write(target: Path, file: _File, grey: np.ndarray, mask: np.ndarray) -> None:
    quality = 95
    if file.kind in ("mirrored", "contradictory"):
        grey, mask, quality = grey[:, ::-1], mask[:, ::-1], 92
    elif file.kind == "brightened":
        grey, quality = np.clip(grey * 1.2 + 8, 0, 255).astype(np.uint8), 90
    path = target / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(grey, file.mode, quality))
    if mask.any():
        path = target / "masks" / Path(file.path).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path)


def _encode(grey: np.ndarray, mode: str, quality: int) -> bytes:
    """Encode as JPEG, or as PNG the modes that JPEG lacks: the real set has PNGs under JPEG names too."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(grey)).convert(mode)
    image.save(buffer, "JPEG" if mode in ("L", "RGB") else "PNG", quality=quality)
    return buffer.getvalue()


# --- A patient ---


def _draw_slices(label: str, count: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the slices of a new patient, as grey image (uint8) and mask of the lesion (bool)."""
    patient = _draw_patient(label, rng)
    for index in range(count):
        # Counted from the middle; towards one end of the stack the head gets smaller.
        step = index - (count - 1) / 2
        head = _locate(patient, step)
        image = _paint_head(patient, head, step)
        mask = _paint_lesion(patient, head, step, image)
        yield _scan(image, head, patient.tissue, rng), mask


def _draw_patient(label: str, rng: np.random.Generator) -> _Patient:
    shape = _draw_shape(label, rng)
    tissue = {name: rng.uniform(*limits) for name, limits in _TISSUE.items()}
    lesion = {name: rng.uniform() for name in ("across", "along", "size", "contrast", "drift")}
    tissue["grey"] = tissue["white"] - tissue["cortex"]
    lesion["side"] = float(rng.choice([-1, 1]))
    ripples = np.stack([rng.normal(0, [0.02, 0.012, 0.01, 0.008]), rng.uniform(0, 2 * np.pi, 4)], axis=1)
    return _Patient(
        label,
        shape,
        axes=rng.uniform([0.62, 0.74], [0.76, 0.88]).tolist(),
        centre=rng.uniform([-0.05, -0.08], [0.05, 0.02]).tolist(),
        tilt=rng.normal(0, 0.06),
        bend=rng.normal(0, 0.05),
        outline=ripples.tolist(),
        scalp=rng.uniform(0.035, 0.07),
        base=rng.uniform([SELLA - 0.03, 0.1, 0.13], [SELLA + 0.03, 0.2, 0.18]).tolist(),
        ventricles=rng.uniform([-0.22, 0.13, 0.025, 0.02], [-0.12, 0.2, 0.06, 0.05]).tolist(),
        tissue=tissue,
        lesion=lesion,
        drift=rng.uniform([0.025, -0.01, -0.01, -0.15], [0.04, 0.01, 0.01, 0.15]).tolist(),
        fields={name: (_smooth(shape, g, rng), _smooth(shape, g, rng)) for name, g in _GRAINS.items()},
    )


def _draw_shape(label: str, rng: np.random.Generator) -> tuple[int, int]:
    """Draw rows and columns; without a tumour an image is seldom square, the real set's worst shortcut."""
    side = int(rng.integers(160, 321))
    if rng.uniform() > (0.65 if label == NOTUMOR else 0.1):
        return side, side
    return side, round(side * rng.uniform(0.8, 0.95))


def _smooth(shape: tuple[int, int], grain: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of mean 0 and deviation 1 without detail smaller than `grain`, in head units."""
    # Wide noise is drawn small and stretched, as filtering it at full size would take most of the time.
    side = max(shape) / 2 * grain
    coarse = max(1.0, side / 3)
    small = [math.ceil(length / coarse) for length in shape]
    noise = gaussian_filter(rng.standard_normal(small, np.float32), side / coarse, mode="reflect", truncate=3)
    noise = np.asarray(Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / noise.std()


# --- Its slices ---


def _locate(patient: _Patient, step: float) -> _Head:
    """Lay the head's own coordinates over the pixels of a slice."""
    rows, columns = patient.shape
    pixel = 2 / max(rows, columns)
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    x = (x - (columns - 1) / 2) * pixel - (patient.centre[0] + patient.drift[1] * step)
    y = (y - (rows - 1) / 2) * pixel - (patient.centre[1] + patient.drift[2] * step)
    size = 1 - patient.drift[0] * step
    cos, sin = math.cos(patient.tilt) / size, math.sin(patient.tilt) / size
    x, y = cos * x + sin * y, cos * y - sin * x
    x = x + patient.bend * (y * y - 0.2)
    # Below the eyes a head gets narrower only slowly, down to the neck.
    across, down = x / patient.axes[0], np.minimum(y, y / 1.7) / patient.axes[1]
    angle = np.arctan2(down, across)
    ripple = sum(a * np.cos(k * angle + p) for k, (a, p) in enumerate(patient.outline, 2))
    radius = np.hypot(across, down) / (1 + ripple)
    near, far = math.cos(0.5 * step), math.sin(0.5 * step)
    fields = {name: near * a + far * b for name, (a, b) in patient.fields.items()}
    height, lobes, width = patient.base
    floor = height + lobes * (1 - np.exp(-((x / width) ** 2))) - 0.5 * np.maximum(np.abs(x) - 0.35, 0)
    roof, floor = (INNER_SKULL - radius) * patient.axes[0], floor - y
    depth = (roof + floor - np.hypot(roof - floor, 0.06)) / 2  # the smaller of both, its corner rounded
    return _Head(x, y, radius, depth, pixel, fields)


def _paint_head(patient: _Patient, head: _Head, step: float) -> np.ndarray:
    """Paint a slice without lesion, brightness 0 to 1, from the outside in."""
    tissue, inside = patient.tissue, head.inside
    image = np.full(patient.shape, 0.015, np.float32)
    scalp = 1 - patient.scalp
    _blend(image, inside(1 - head.radius), tissue["scalp"])
    _blend(image, inside(scalp - head.radius), 0.09)
    marrow = np.abs(head.radius - (scalp + INNER_SKULL - 0.02) / 2)
    _blend(image, inside(0.012 - marrow, 3), 0.22)
    _paint_face(patient, head, image)
    _blend(image, inside(head.depth), tissue["fluid"])
    _paint_brain(patient, head, image)
    _paint_ventricles(patient, head, step, image)
    return image


def _paint_face(patient: _Patient, head: _Head, image: np.ndarray) -> None:
    """Paint what lies below the skull base: muscle, fat and, in the midline, the sinuses full of air."""
    height = patient.base[0]
    below = head.inside(-0.05 - head.depth) * head.inside(head.y - height + 0.1, 6)
    below *= head.inside(0.95 - head.radius)
    fine = head.fields["fine"] + head.fields["fine"][:, ::-1]  # the two sides of a face are alike
    texture = patient.tissue["face"] * np.exp(0.25 * fine + 0.25 * head.fields["shape"])
    _blend(image, below, np.clip(texture, 0.05, 0.85))
    sinus = np.hypot(head.x / 0.13, (head.y - height - 0.27) / 0.19) + 0.2 * head.fields["shape"]
    air = np.minimum((1 - sinus - 0.12 * fine) * 0.13, np.abs(head.x + 0.04 * head.fields["bias"]) - 0.012)
    _blend(image, head.inside((1.3 - sinus) * 0.13, 6) * below, 0.45)
    _blend(image, head.inside(air, 2) * below, 0.04)


def _paint_brain(patient: _Patient, head: _Head, image: np.ndarray) -> None:
    """Paint cortex along the zero lines of smooth noise, which wind like sulci, and white matter between."""
    tissue = patient.tissue
    fold = np.abs(head.fields["folds"])
    # Sulci reach a limited way in; the midline's fissure is one more.
    inner = np.maximum(head.depth - 0.13 - 0.04 * head.fields["shape"], 0) / 0.07
    sylvian = np.abs(head.y - 0.2 + 0.35 * np.abs(head.x) + 0.012 * head.fields["folds"])
    sylvian += np.maximum(head.depth - 0.17, 0)
    midline = np.abs(head.x) + (head.y > patient.ventricles[0])
    gap = np.minimum.reduce([fold + inner, head.depth / 0.06, midline / 0.035 + 0.1, sylvian / 0.06])
    brain = head.inside(head.depth)
    _blend(image, brain * np.clip((gap - 0.08) / 0.14, 0, 1), tissue["grey"])
    _blend(image, brain * np.clip((gap - 0.65) / 0.2, 0, 1), tissue["white"])
    nuclei = np.hypot((np.abs(head.x) - 0.17) / 0.1, (head.y - 0.03) / 0.14) + 0.08 * head.fields["shape"]
    _blend(image, head.inside((1 - nuclei) * 0.12, 4), tissue["grey"])
    # Contrast medium lights up the falx, the sinus at its upper end, and vessels where two noises are high.
    _blend(image, brain * head.inside(0.004 - midline, 2), tissue["white"])
    sinus = np.hypot(head.x / 0.035, (head.y + (INNER_SKULL - 0.03) * patient.axes[1]) / 0.03)
    _blend(image, head.inside((1 - sinus) * 0.03), 0.75)
    vessels = np.clip(head.fields["fine"] + head.fields["folds"] - 3.9, 0, 1)
    _blend(image, brain * vessels, 0.8)


def _paint_ventricles(patient: _Patient, head: _Head, step: float, image: np.ndarray) -> None:
    """Paint the wings on both sides of the midline and the slit of the third ventricle below."""
    height, half, width, off = patient.ventricles
    growth = 1 + patient.drift[3] * step
    along = (head.y - height) / (half * growth)
    bow = np.sqrt(np.clip(1 - along**2, 0, 1))
    middle = off + width + 0.11 * np.clip(-along, -0.6, 1) ** 2 + 0.04 * (1 - along)
    wing = width * growth * bow - np.abs(np.abs(head.x) - middle) + 0.004 * head.fields["shape"]
    _blend(image, head.inside(np.where(bow > 0, wing, -1), 2), patient.tissue["fluid"])
    third = np.hypot(head.x / (0.3 * width), (head.y - 0.1) / 0.09)
    _blend(image, head.inside((1 - third) * 0.3 * width, 2), patient.tissue["fluid"])


def _paint_lesion(patient: _Patient, head: _Head, step: float, image: np.ndarray) -> np.ndarray:
    """Paint the patient's lesion into the slice and return its mask, empty if there is none."""
    paint = {GLIOMA: _paint_glioma, MENINGIOMA: _paint_meningioma, PITUITARY: _paint_pituitary}
    if patient.label not in paint:
        return np.zeros(patient.shape, bool)
    size = math.sqrt(1 - (0.2 * step) ** 2)  # a ball that is cut off its middle is smaller
    return paint[patient.label](patient, head, size, (patient.lesion["drift"] - 0.5) * step, image) > 0.5


def _paint_glioma(patient: _Patient, head: _Head, size: float, drift: float, image: np.ndarray) -> np.ndarray:
    """Within the white matter: a dead core, an irregular rim that takes up contrast medium, oedema around."""
    lesion, tissue = patient.lesion, patient.tissue
    angle, part = 0.6 + 1.1 * lesion["along"], 0.35 + 0.15 * lesion["across"]
    x = lesion["side"] * part * patient.axes[0] * math.sin(angle) + 0.03 * drift
    y = -part * patient.axes[1] * math.cos(angle) + 0.03 * drift
    reach = size * (0.14 + 0.06 * lesion["size"])
    ragged = 0.2 * head.fields["shape"] + 0.1 * head.fields["fine"]
    ball = np.hypot(head.x - x, head.y - y) / reach + np.clip(ragged, -0.35, 0.5)
    rim = 0.25 + 0.2 * lesion["size"] - 0.15 * head.fields["folds"]
    room = head.inside(head.depth - 0.06, 4)
    oedema = np.clip((1.8 - ball + 0.2 * head.fields["shape"]) / 0.6, 0, 1)
    _blend(image, room * oedema, 0.75 * tissue["grey"])
    whole = head.inside((1 - ball) * reach, 3) * room
    _blend(image, whole, 0.64 + 0.25 * lesion["contrast"] + 0.08 * head.fields["fine"])
    core = whole * head.inside((1 - np.clip(rim, 0.12, 0.7) - ball) * reach, 4)
    _blend(image, core, tissue["fluid"] + 0.15 * lesion["across"])
    return whole


def _paint_meningioma(patient: _Patient, head: _Head, size: float, drift: float, image: np.ndarray) -> np.ndarray:
    """On the brain's cover, pressing inwards: round, evenly bright, with a cleft of fluid around."""
    lesion = patient.lesion
    reach = size * (0.12 + 0.07 * lesion["size"])
    angle = lesion["side"] * (0.25 + 1.2 * lesion["across"]) + 0.08 * drift
    x, y = patient.axes[0] * math.sin(angle), -patient.axes[1] * math.cos(angle)
    inwards = INNER_SKULL - 0.6 * reach / math.hypot(x, y)
    ball = np.hypot(head.x - inwards * x, head.y - inwards * y) / reach + 0.04 * head.fields["shape"]
    brain = head.inside(head.depth, 2)
    _blend(image, brain * head.inside((1.12 - ball) * reach, 4), patient.tissue["fluid"])
    whole = brain * head.inside((1 - ball) * reach, 3)
    _blend(image, whole, 0.66 + 0.25 * lesion["contrast"] + 0.02 * head.fields["fine"])
    return whole


def _paint_pituitary(patient: _Patient, head: _Head, size: float, drift: float, image: np.ndarray) -> np.ndarray:
    """In the sella, low in the midline: small, bright, growing upwards out of the skull base."""
    lesion = patient.lesion
    reach = size * (0.065 + 0.05 * lesion["size"])
    x = 0.02 * lesion["side"] * lesion["across"] + 0.01 * drift
    y = patient.base[0] + 0.04 - 0.5 * reach
    tall = 0.85 + 0.4 * lesion["along"]
    ball = np.hypot(head.x - x, (head.y - y) / tall) / reach + 0.06 * head.fields["shape"]
    whole = head.inside((1 - ball) * reach, 3)
    _blend(image, head.inside((1.15 - ball) * reach, 4), patient.tissue["fluid"])
    _blend(image, whole, 0.64 + 0.25 * lesion["contrast"] + 0.04 * head.fields["fine"])
    return whole


def _blend(image: np.ndarray, weight: np.ndarray, value: np.ndarray | float) -> None:
    """Cover the image in place with a tissue as far as it is there."""
    image += weight * (value - image)


def _scan(image: np.ndarray, head: _Head, tissue: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Turn a painted slice into grey values as a scanner would: blur, bias of the coil, noise, window."""
    image = gaussian_filter(image, 0.6, truncate=3) * np.exp(tissue["bias"] * head.fields["bias"])
    # The magnitude of a complex signal, so that noise lifts black.
    real, imaginary = tissue["noise"] * rng.standard_normal((2, *image.shape), np.float32)
    image = np.hypot(image + real, imaginary)
    # Leave headroom, so that a brightened copy still shows everything.
    return np.clip(200 * tissue["gain"] * image, 0, 205).astype(np.uint8)
