"""The phantom: a made-up dataset whose anatomy, tables and planted copies are what it says they are."""

import hashlib
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt

from braintumor.copies import find_copies, signature, similarity
from braintumor.errors import UserError
from braintumor.images import read_image
from braintumor.phantom import CLASSES, GLIOMA, MENINGIOMA, NOTUMOR, PITUITARY, make_phantom

FOLDERS = ("Training", "Testing")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    target = tmp_path_factory.mktemp("phantom") / "set"
    make_phantom(target, patients=24, seed=0)
    return target


@pytest.fixture(scope="module")
def images(phantom):
    """Each image's path relative to the set, and the image as read."""
    files = sorted(path for folder in FOLDERS for path in (phantom / folder).rglob("*.jpg"))
    return {path.relative_to(phantom).as_posix(): read_image(path) for path in files}


@pytest.fixture(scope="module")
def masks(phantom):
    """Each mask, under the path of its image."""
    files = sorted((phantom / "masks").rglob("*.png"))
    names = [path.relative_to(phantom / "masks").with_suffix(".jpg").as_posix() for path in files]
    return {name: np.asarray(Image.open(path)) for name, path in zip(names, files, strict=True)}


@pytest.fixture(scope="module")
def copies(phantom):
    return pd.read_csv(phantom / "copies.csv")


def label_of(path):
    return path.split("/")[1]


def patient_of(path):
    return int(re.search(r"/p(\d+)_s\d+", path)[1])


def contents(target):
    return {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def head_of(grey):
    """Fill the outline of the head, found by brightness alone; the neck runs out of the frame."""
    bright = np.pad(grey > 30, ((20, 0), (20, 20)))
    bright = np.vstack([bright, np.ones((1, bright.shape[1]), bool)])
    return binary_fill_holes(binary_closing(bright, iterations=3))[20:-1, 20:-20]


def place(path, images, masks):
    """Return how far, in widths of the head, the lesion keeps from the skin, and its centre in the head's box."""
    head, mask = head_of(images[path].grey), masks[path] > 0
    columns, rows = np.flatnonzero(head.any(axis=0)), np.flatnonzero(head.any(axis=1))
    width = columns[-1] - columns[0] + 1
    y, x = np.nonzero(mask)
    distance = distance_transform_edt(np.pad(head, ((1, 0), (1, 1))))[1:, 1:-1]
    return distance[mask].min() / width, (x.mean() - columns[0]) / width, (y.mean() - rows[0]) / width


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_phantom(tmp_path / name, patients=8, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    shared = [path for path in first.keys() & other.keys() if path.suffix == ".jpg"]
    assert shared and all(first[path] != other[path] for path in shared)


def test_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        make_phantom(tmp_path, patients=8, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_too_few_patients_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 8"):
        make_phantom(tmp_path / "set", patients=7, seed=0)


@pytest.mark.parametrize("seed", [1, 2])
def test_smallest_set_has_every_class_mode_and_kind_of_copy(tmp_path, seed):
    make_phantom(tmp_path / "set", patients=8, seed=seed)
    files = [path for folder in FOLDERS for path in (tmp_path / "set" / folder).rglob("*.jpg")]
    read = [read_image(path) for path in files]
    assert {path.parts[-3:-1] for path in files} == {(f, label) for f in FOLDERS for label in CLASSES}
    assert {image.mode for image in read} == {"L", "RGB", "RGBA", "P"}
    assert {image.format for image in read} == {"JPEG", "PNG"}
    kinds = Counter(pd.read_csv(tmp_path / "set" / "copies.csv").kind)
    assert set(kinds) == {"mirrored", "brightened", "identical", "contradictory"}
    assert kinds["contradictory"] == 1


def test_set_is_laid_out_like_the_real_one(images, copies):
    testing = [path for path in images if path.startswith("Testing")]
    assert 0.15 < len(testing) / len(images) < 0.25
    planted = copies[copies.kind != "contradictory"]
    assert 0.4 < len(planted) / len(testing) < 0.6
    assert planted.path.str.startswith("Testing").all() and planted.source.str.startswith("Training").all()
    assert (planted.kind == "mirrored").mean() > 0.5
    trained = {patient_of(path) for path in images if path.startswith("Training")}
    assert {patient_of(path) for path in testing} <= trained
    assert not any(re.search(r"(Tr|Te)-(gl|me|no|pi)[A-Za-z]*_[0-9]+\.jpg", path) for path in images)
    sides = [side for image in images.values() for side in (image.width, image.height)]
    assert min(sides) >= 120 and max(sides) <= 320 and len(set(sides)) > 10


def test_copies_found_are_exactly_those_planted(phantom, images, copies):
    paths = list(images)
    signatures = np.stack([signature(image.grey) for image in images.values()])
    hashes = [hashlib.sha256((phantom / path).read_bytes()).hexdigest() for path in paths]
    groups, _, _ = find_copies(signatures, hashes, threshold=0.99)
    group = dict(zip(paths, groups, strict=True))
    pairs = {frozenset((a, b)) for a in paths for b in paths if a < b and group[a] == group[b]}
    assert pairs == {frozenset(pair) for pair in zip(copies.path, copies.source, strict=True)}
    matrix = similarity(signatures, signatures)
    others = [
        matrix[i, j] for i in range(len(paths)) for j in range(i) if not {frozenset((paths[i], paths[j]))} & pairs
    ]
    assert max(others) < 0.985


def test_each_kind_of_copy_is_what_it_is_called(phantom, images, copies):
    for path, source, kind in copies.itertuples(index=False):
        copy, original = images[path].grey.astype(float), images[source].grey.astype(float)
        assert ((phantom / path).read_bytes() == (phantom / source).read_bytes()) == (kind == "identical")
        assert patient_of(path) == patient_of(source)
        assert (label_of(path) == label_of(source)) == (kind != "contradictory")
        if kind in ("mirrored", "contradictory"):
            assert np.abs(copy[:, ::-1] - original).mean() < 3 < np.abs(copy - original).mean()
        if kind == "brightened":
            assert copy.mean() > 1.1 * original.mean()


def test_patients_table_covers_tumour_images_and_a_part_of_the_others(phantom, images):
    table = pd.read_csv(phantom / "patients.csv")
    assert list(table.columns) == ["path", "patient"] and table.path.is_unique
    known = dict(zip(table.path, table.patient, strict=True))
    assert known.keys() <= images.keys()
    assert all(known[path] == patient_of(path) for path in known)
    missing = [path for path in images if path not in known]
    assert {label_of(path) for path in missing} == {NOTUMOR}
    assert 0.2 < len(missing) / sum(label_of(path) == NOTUMOR for path in images) < 0.8


def test_patient_has_one_class_but_for_the_planted_contradiction(images, copies):
    planted = set(copies.path[copies.kind == "contradictory"])
    labels = {(patient_of(path), label_of(path)) for path in images if path not in planted}
    assert len(labels) == len({patient for patient, _ in labels}) == 24
    assert all(4 <= n <= 7 for n in Counter(patient_of(p) for p in images if p not in set(copies.path)).values())


def test_each_tumour_has_a_mask_of_its_images_size_and_nothing_else_has(images, masks):
    assert set(masks) == {path for path in images if label_of(path) != NOTUMOR}
    for path, mask in masks.items():
        assert mask.shape == images[path].grey.shape
        assert set(np.unique(mask)) == {0, 255}
        assert 0.002 < (mask > 0).mean() < 0.1


def test_lesions_lie_where_their_class_has_them(images, masks, copies):
    places = {label: [] for label in CLASSES}
    for path in masks.keys() - set(copies.path[copies.kind == "contradictory"]):
        places[label_of(path)].append(place(path, images, masks))
    from_skin, across, down = (
        {label: np.array(values)[:, i] for label, values in places.items() if values} for i in range(3)
    )
    # Skin to brain is about 0.07 of the head's width.
    assert from_skin[GLIOMA].min() > 0.085
    assert from_skin[MENINGIOMA].max() < 0.11
    assert np.median(from_skin[MENINGIOMA]) < np.quantile(from_skin[GLIOMA], 0.05)
    assert np.abs(across[PITUITARY] - 0.5).max() < 0.12
    assert np.abs(across[GLIOMA] - 0.5).min() > 0.05
    assert down[PITUITARY].min() > max(down[GLIOMA].max(), 0.6)


def test_lesions_are_brighter_than_the_tissue_they_displace(images, masks):
    contrasts = {label: [] for label in CLASSES}
    for path, mask in masks.items():
        grey, lesion = images[path].grey.astype(float), mask > 0
        # A pituitary tumour lies on the midline: for it, what is above, as far as the lesion is tall, must do.
        rows = np.flatnonzero(lesion.any(axis=1))
        other = np.roll(lesion, rows[0] - rows[-1] - 6, axis=0) if label_of(path) == PITUITARY else lesion[:, ::-1]
        # The upper quarter, since the core of a glioma is dark.
        contrasts[label_of(path)].append(np.quantile(grey[lesion], 0.75) / np.quantile(grey[other], 0.75))
    assert np.mean(contrasts[GLIOMA]) > 1.15
    assert np.mean(contrasts[MENINGIOMA]) > 1.3
    assert np.mean(contrasts[PITUITARY]) > 1.2


def test_masks_of_mirrored_copies_are_mirrored(masks, copies):
    for path, source, kind in copies.itertuples(index=False):
        if label_of(source) != NOTUMOR:
            step = -1 if kind in ("mirrored", "contradictory") else 1
            np.testing.assert_array_equal(masks[path][:, ::step], masks[source])


def test_images_without_tumour_are_more_often_not_square(tmp_path):
    make_phantom(tmp_path / "set", patients=40, seed=5)
    odd = {True: [], False: []}
    for path in (tmp_path / "set" / "Training").rglob("*_s0.jpg"):
        with Image.open(path) as image:
            odd[path.parent.name == NOTUMOR].append(image.width != image.height)
    assert np.mean(odd[True]) > 0.4
    assert np.mean(odd[False]) < 0.3
