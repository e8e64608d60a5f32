import errno
import os

import numpy as np
import pytest
from PIL import Image

from braintumor.images import (
    UnreadableImageError,
    crop_head,
    decode_image,
    load_squares,
    read_image,
    resize_square,
    to_grey,
)

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_grey_colour_and_bilevel_images_keep_their_brightness():
    assert (to_grey(Image.fromarray(RAMP)) == RAMP).all()
    assert (to_grey(Image.fromarray(RAMP).convert("RGB")) == RAMP).all()
    assert to_grey(Image.fromarray(RAMP > 100)).tolist() == np.where(RAMP > 100, 255, 0).tolist()


def test_colour_is_weighted_as_luma():
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    red, green, blue = (Image.new("RGB", (1, 1), colour) for colour in ("#ff0000", "#00ff00", "#0000ff"))
    assert [int(to_grey(image)[0, 0]) for image in (red, green, blue)] == [76, 150, 29]


def test_printing_colours_are_understood():
    assert to_grey(Image.new("CMYK", (1, 1), (0, 0, 0, 51))).tolist() == [[204]]


def test_a_palette_is_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 200, 200, 200])
    image.putdata([1, 0])
    assert to_grey(image).tolist() == [[200, 10]]


def test_transparent_pixels_lie_over_black():
    rgba = Image.fromarray(np.array([[[200, 200, 200, 255], [200, 200, 200, 0], [200, 200, 200, 51]]], np.uint8))
    assert to_grey(rgba).tolist() == [[200, 0, 40]]
    assert to_grey(rgba.convert("LA")).tolist() == [[200, 0, 40]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 200, 200, 100, 100, 100])
    palette.putdata([0, 1])
    palette.info["transparency"] = 0
    assert to_grey(palette).tolist() == [[0, 100]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_pixels_are_stretched_by_their_own_range(dtype):
    values = np.array([[1000, 2000], [1500, 1000]], dtype)
    assert to_grey(Image.fromarray(values)).tolist() == [[0, 255], [128, 0]]


def test_floats_pass_over_what_is_not_finite_and_constants_are_black():
    values = np.array([[np.nan, 0.0], [0.5, 1.0], [np.inf, -np.inf]], np.float32)
    assert to_grey(Image.fromarray(values)).tolist() == [[0, 0], [128, 255], [255, 0]]
    assert to_grey(Image.fromarray(np.full((1, 2), 7, np.int32))).tolist() == [[0, 0]]


def test_a_16_bit_png_and_a_float_tiff_are_read_from_files(tmp_path):
    values = np.array([[0, 30000], [60000, 15000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        assert read_image(tmp_path / name).grey.tolist() == [[0, 128], [255, 64]]


def test_exif_orientation_is_applied_and_the_files_own_size_is_told(tmp_path):
    grey = np.zeros((16, 32), np.uint8)
    grey[:, 24:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert (image.width, image.height) == (32, 16)
    assert (image.grey == np.rot90(grey, -1)).all()


def test_the_format_is_that_of_the_bytes(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", format="PNG")
    image = read_image(tmp_path / "a.jpg")
    assert (image.format, image.mode) == ("PNG", "L")


def test_a_jpeg_decoded_small_is_the_block_mean_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).resize((512, 512)))
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    whole, small = (read_image(tmp_path / "a.jpg", least) for least in (None, 224))
    assert (whole.width, small.width, small.mode) == (512, 512, "RGB")
    assert small.grey.shape == (256, 256)
    means = whole.grey.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.abs(means - small.grey).mean() < 1


def test_what_cannot_be_decoded_says_why(tmp_path):
    good = tmp_path / "good.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(good)
    content = good.read_bytes()
    for data, reason in ((b"", "empty file"), (b"hello", "not an image"), (content[:900], "truncated")):
        with pytest.raises(UnreadableImageError, match=reason):
            decode_image(data)
    with pytest.raises(UnreadableImageError, match="64 x 64 is over the limit of 4095 pixels"):
        decode_image(content, max_pixels=4095)


def test_a_machine_that_cannot_read_is_not_a_bad_image(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "b.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: (_ for _ in ()).throw(MemoryError))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda _: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")


def test_cropping_leaves_the_head():
    grey = np.zeros((100, 80), np.uint8)
    grey[20:70, 10:60] = 120
    grey[3, 5] = 255  # a single bright pixel is no head
    assert crop_head(grey).shape == (50, 50)
    assert crop_head(np.zeros((5, 6), np.uint8)).shape == (5, 6)


def test_letterbox_keeps_the_aspect_ratio_and_stretch_fills():
    grey = np.full((20, 40), 100, np.uint8)
    boxed = resize_square(grey, 20, letterbox=True)
    assert (boxed[5:15] == 100).all() and (boxed[:5] == 0).all() and (boxed[15:] == 0).all()
    assert (resize_square(grey, 20) == 100).all()


def test_squares_come_in_the_order_of_the_files(tmp_path):
    files = []
    for value in (200, 10, 90):
        files.append(tmp_path / f"{value}.png")
        Image.new("L", (30, 20), value).save(files[-1])
    load_squares(files, tmp_path / "out" / "images.npy", 16, crop=False, letterbox=False, workers=2)
    array = np.load(tmp_path / "out" / "images.npy", mmap_mode="r")
    assert (array.shape, array.dtype) == ((3, 16, 16), np.uint8)
    assert array[:, 8, 8].tolist() == [200, 10, 90]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call here")
def test_the_room_of_the_array_is_taken_before_it_is_written(tmp_path, monkeypatch):
    """A page that finds none on the disk would end the process without a word."""

    def refuse(file, offset, length):
        assert (offset, length) == (0, os.fstat(file).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(OSError, match="No space left") as caught:
        load_squares([tmp_path / "a.png"], tmp_path / "images.npy", 8, False, False, 1)
    assert caught.value.filename == str(tmp_path / "images.npy")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_cropped_square_is_cut_from_the_whole_image(tmp_path):
    # Decoded at a quarter first, a head of 64 pixels would come out of 16.
    grey = np.zeros((256, 256), np.uint8)
    grey[96:160, 96:160:2] = 255
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=100)
    load_squares([tmp_path / "a.jpg"], tmp_path / "a.npy", 64, crop=True, letterbox=False, workers=1)
    assert np.load(tmp_path / "a.npy")[0].std() > 50
