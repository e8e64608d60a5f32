"""Boxes and masks of tumours in the grey squares that the network sees."""

import numpy as np
import pytest
from PIL import Image

from braintumor import figshare
from braintumor.errors import UserError
from braintumor.images import load_squares
from braintumor.phantom import make_phantom
from braintumor.regions import fill_box, find_tumours, read_boxes
from tests.test_figshare import arguments, work  # noqa: F401, a fixture

PATH = "Testing/glioma/a.png"
HOW = {
    "stretched": (False, False),
    "letterboxed": (False, True),
    "cropped": (True, False),
    "cropped and letterboxed": (True, True),
}


@pytest.fixture
def scan(tmp_path):
    """Draw a grey head of 120 x 160 pixels off the image's middle, its tumour white, and say where that is."""
    grey = np.zeros((200, 300), np.uint8)
    grey[30:190, 100:220] = 60
    mask = np.zeros_like(grey)
    mask[60:110, 120:180] = 255
    for name, array in (("raw", np.maximum(grey, mask)), ("masks", mask)):
        (tmp_path / name / PATH).parent.mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / name / PATH)
    (tmp_path / "boxes.csv").write_text(
        f"path,left,top,right,bottom\n{PATH},{120 / 300},{60 / 200},{180 / 300},{110 / 200}\n"
    )
    return tmp_path


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("source", ["boxes.csv", "masks"])
def test_a_tumour_lies_where_the_square_shows_it(scan, source, how):
    crop, letterbox = HOW[how]
    load_squares([scan / "raw" / PATH], scan / "images.npy", 64, crop, letterbox, 1)
    square = np.load(scan / "images.npy")[0]
    rows, masks = find_tumours(scan / source, scan / "raw", ["Testing/notumor/b.png", PATH], 64, crop, letterbox)
    assert rows.tolist() == [1]
    bright = square > 157  # half way from the head to the tumour
    assert masks.shape == (1, 64, 64) and 100 < bright.sum() < 700
    assert (masks[0] & bright).sum() / (masks[0] | bright).sum() > 0.9


def test_a_box_fills_its_pixels():
    mask = fill_box(np.array([0.25, 0.1, 0.5, 0.3]), (10, 8))
    assert np.argwhere(mask).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert set(np.unique(mask)) == {0, 255}
    assert np.argwhere(fill_box(np.array([0.99, 0.99, 1, 1]), (10, 8))).tolist() == [[9, 7]]
    assert fill_box(np.array([0, 0, 1, 1]), (10, 8)).all()


def test_the_phantoms_masks_are_found_for_what_has_a_tumour(tmp_path):
    make_phantom(tmp_path / "raw", patients=8, seed=1)
    paths = sorted(p.relative_to(tmp_path / "raw").as_posix() for p in (tmp_path / "raw").glob("T*/*/*.jpg"))
    rows, masks = find_tumours(tmp_path / "raw/masks", tmp_path / "raw", paths, 96, False, False)
    found = [paths[row] for row in rows]
    assert found == [path for path in paths if "/notumor/" not in path]
    assert 0.003 < masks.mean(axis=(1, 2)).min() < masks.mean(axis=(1, 2)).max() < 0.2


def test_the_table_that_figshare_makes_is_one(work):  # noqa: F811
    figshare.main(arguments(work))
    boxes = read_boxes(work / "out/table.csv")
    assert boxes.loc["Training/glioma/a.jpg"].tolist() == [0.625, 0.125, 0.875, 0.375]
    rows, masks = find_tumours(work / "out/table.csv", work / "raw", ["Training/glioma/a.jpg"], 16, False, False)
    assert rows.tolist() == [0]
    assert np.argwhere(masks[0]).min(axis=0).tolist() == [2, 10]
    assert masks.sum() == 4 * 4


def test_comments_stand_above_the_header_only(tmp_path):
    file = tmp_path / "boxes.csv"
    file.write_text("# by hand\npath,left,top,right,bottom\nTraining/g/a#1.jpg,0.1,0.2,0.3,0.4\n")
    assert read_boxes(file).to_dict("index") == {
        "Training/g/a#1.jpg": {"left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.4}
    }


def test_a_slice_without_a_box_is_unknown(tmp_path):
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom\na.png,,,,\nb.png,0,0,1,1\n")
    assert read_boxes(tmp_path / "boxes.csv").index.tolist() == ["b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "boxes.csv cannot be read: No such file"),
        ("path,left,top,right\na.png,0,0,1\n", "is no csv of path, left, top, right, bottom"),
        ("path,left,top,right,bottom\na.png,0,0,1,much\n", "is no csv of path, left, top, right, bottom"),
        ("", "is no csv of path, left, top, right, bottom"),
        ("path,left,top,right,bottom\na.png,0,0,1,1\na.png,0,0,1,1\n", "names a.png twice"),
        ("path,left,top,right,bottom\na.png,10,20,30,40\n", "the box [10.0, 20.0, 30.0, 40.0] for a.png"),
        ("path,left,top,right,bottom\na.png,0.5,0,0.2,1\n", "for a.png: left, top, right and bottom must be"),
        ("path,left,top,right,bottom\nb.png,0,0,1,1\n", "has no tumour of any test image"),
    ],
)
def test_errors_are_one_line_that_says_which(tmp_path, content, message):
    if content is not None:
        (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(UserError) as caught:
        find_tumours(tmp_path / "boxes.csv", tmp_path, ["a.png"], 16, False, False)
    assert str(caught.value).startswith("explain.boxes: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_size_is_refused_where_it_could_not_be_laid_over_the_image(scan):
    mask = Image.open(scan / "masks" / PATH).resize((150, 100))
    mask.save(scan / "masks" / PATH)
    assert len(find_tumours(scan / "masks", scan / "raw", [PATH], 64, False, False)[0]) == 1
    with pytest.raises(UserError, match=rf"masks/{PATH} is not as large as .*raw/{PATH}"):
        find_tumours(scan / "masks", scan / "raw", [PATH], 64, True, False)


def test_a_mask_of_labels_is_refused_rather_than_taken_for_an_empty_one(scan):
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(scan / "masks" / PATH)
    with pytest.raises(UserError, match=rf"masks/{PATH} is black but for 1: white, 255, is the tumour"):
        find_tumours(scan / "masks", scan / "raw", [PATH], 64, False, False)


def test_a_mask_that_cannot_be_read_is_named(scan):
    (scan / "masks" / PATH).write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"masks/{PATH} cannot be read: not an image"):
        find_tumours(scan / "masks", scan / "raw", [PATH], 64, False, False)
