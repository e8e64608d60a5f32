import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from braintumor.batches import Augmentation, Batches, make_sets, measure, warp

CPU = torch.device("cpu")
OFF = {"flip": 0, "shift": 0, "rotation": 0, "scale": 0, "brightness": 0, "contrast": 0}
NONE = Augmentation(**OFF)
ALL = Augmentation(flip=0.5, shift=0.1, rotation=10, scale=0.25, brightness=0.2, contrast=0.2)


def random_images(n=20, size=16):
    return np.random.default_rng(0).integers(0, 256, (n, size, size), np.uint8)


def make(images, rows=None, batch_size=4, **options):
    rows = np.arange(len(images)) if rows is None else rows
    return Batches(images, rows, rows % 3, batch_size, mean=0.5, deviation=0.25, device=CPU, **options)


def collect(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_in_order_gives_every_row_once_normalised():
    images, rows = random_images(), np.array([5, 3, 11, 2, 7])
    got, labels = collect(make(images, rows).in_order())
    expected = (images[rows, None] / 255 - 0.5) / 0.25
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float32), atol=1e-5)
    assert labels.tolist() == [2, 0, 2, 2, 1]


def test_an_epoch_without_augmentation_is_a_permutation_of_full_batches():
    images = random_images(10)
    got, labels = collect(make(images).shuffled(NONE, seed=1))
    assert len(got) == 8  # two do not fill a batch of four
    plain = (images / 255 - 0.5) / 0.25
    matches = [int(np.flatnonzero(np.isclose(plain, image, atol=1e-4).all(axis=(1, 2)))[0]) for image in got[:, 0]]
    assert len(set(matches)) == 8
    assert matches != sorted(matches)
    assert labels.tolist() == [row % 3 for row in matches]


def test_a_set_smaller_than_a_batch_is_one_batch():
    images, _ = collect(make(random_images(3), batch_size=8).shuffled(NONE, seed=0))
    assert len(images) == 3


def test_the_seed_decides_order_and_augmentation():
    batches = make(random_images())
    first, again, other = (collect(batches.shuffled(ALL, seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_streamed_and_resident_batches_are_the_same(tmp_path):
    np.save(tmp_path / "images.npy", random_images())
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    resident, streamed = make(images), make(images, resident_bytes=0)
    assert streamed.resident is None
    assert torch.equal(collect(resident.shuffled(ALL, 3))[0], collect(streamed.shuffled(ALL, 3))[0])
    assert torch.equal(collect(resident.in_order())[0], collect(streamed.in_order())[0])


def test_streaming_keeps_no_pages_of_the_file_in_memory(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (8000, 200, 200))  # 320 MB
    images[:] = 1
    images.flush()
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches, process = make(images, batch_size=50, resident_bytes=0), psutil.Process()
    next(batches.in_order())
    before = process.memory_info().rss
    for _ in batches.in_order():
        pass
    assert process.memory_info().rss - before < 120e6


@pytest.mark.parametrize("resident", [0, None])
def test_processes_together_get_what_one_gets_alone(resident):
    batches = make(random_images(22), resident_bytes=resident)
    alone, shares = list(batches.shuffled(ALL, 3)), [list(batches.shuffled(ALL, 3, rank, 2)) for rank in (0, 1)]
    assert len(alone) == 5
    for (images, labels), *parts in zip(alone, *shares, strict=True):
        assert [len(part) for part, _ in parts] == [2, 2]
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([own for _, own in parts]), labels)
    alone, shares = collect(batches.in_order())[0], [collect(batches.in_order(rank, 3))[0] for rank in (0, 1, 2)]
    assert [len(share) for share in shares] == [8, 7, 7]
    for rank, share in enumerate(shares):
        assert torch.equal(share, alone[rank::3])


def test_batches_that_are_skipped_leave_the_others_as_they_are():
    batches = make(random_images(280))  # 70 batches: more than draws are made for at once
    whole, rest = list(batches.shuffled(ALL, 3)), list(batches.shuffled(ALL, 3, skip=66))
    assert len(whole) == 70 and len(rest) == 4
    for (images, labels), (others, other_labels) in zip(whole[66:], rest, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_a_split_becomes_sets_normalised_by_what_trains():
    images = random_images(6)
    subsets = ["train", "test", "train", "validation", "unused", "train"]
    table = pd.DataFrame({"class": list("baabba"), "group": range(6), "copy_group": range(6), "subset": subsets})
    sets = make_sets(table, images, 2, 0.0, False, CPU)
    assert sets.classes == ("a", "b")
    assert (sets.train.rows.tolist(), sets.train.labels.tolist()) == ([0, 2, 5], [1, 0, 0])
    assert (sets.validation.rows.tolist(), sets.validation.labels.tolist()) == ([3], [1])
    for batches in (sets.train, sets.validation):
        assert batches.mean == pytest.approx(images[[0, 2, 5]].mean() / 255)
        assert batches.deviation == pytest.approx(images[[0, 2, 5]].std() / 255)


def test_a_balanced_epoch_draws_large_groups_less_often():
    # 18 images of one person and 2 of another: balance 1 gives each person half of the epoch, 0.5 gives 3 to 1.
    table = pd.DataFrame({"class": "ab" * 11, "group": [1] * 18 + [2] * 2 + [3] * 2, "copy_group": range(22)})
    table["subset"] = "train"
    table.loc[20:, "subset"] = "validation"
    for balance, expected in ((1.0, [10, 10]), (0.5, [15, 5]), (0.0, [18, 2])):
        sets = make_sets(table.assign(**{"class": list("ab" * 11)}), random_images(22), 20, balance, False, CPU)
        counts = np.zeros(20)
        for seed in range(40):
            order = sets.train._order(torch.Generator().manual_seed(seed)).numpy()
            counts += np.bincount(order, minlength=20)
            assert len(order) == 20
        counts /= 40
        assert [counts[:18].sum(), counts[18:].sum()] == pytest.approx(expected, abs=0.5)
        assert counts[:18] == pytest.approx(expected[0] / 18, abs=0.3)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_an_epoch_of_distinct_images_has_one_of_each_group_of_copies(balance):
    # Three copies of one image of a person and one of another, and two of an image of somebody else.
    table = pd.DataFrame(
        {
            "class": list("aaaabbb"),
            "group": [1, 1, 1, 1, 2, 2, 3],
            "copy_group": [7, 7, 7, 8, 9, 9, 10],
            "subset": ["train"] * 6 + ["validation"],
        }
    )
    train = make_sets(table, random_images(7), 2, balance, True, CPU).train
    counts = np.zeros((3, 6))
    for seed in range(3000):
        order = train._order(torch.Generator().manual_seed(seed)).tolist()
        assert len(order) == train.epoch_size == 3 and train.steps == 1
        if balance == 0:
            assert sorted({7: 0, 8: 1, 9: 2}[table["copy_group"][row]] for row in order) == [0, 1, 2]
        for place, row in enumerate(order):
            counts[place, row] += 1 / 3000
    # Of three drawn a third each at every place, and each of the copies as often as the others.
    if balance == 0:
        assert counts == pytest.approx(np.tile([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 6, 1 / 6], (3, 1)), abs=0.03)
    else:  # half of the draws each person
        assert counts.sum(0) == pytest.approx([1 / 4] * 3 + [3 / 4] + [3 / 4] * 2, abs=0.06)


def smooth_image(size=48):
    y, x = np.mgrid[:size, :size] / size
    picture = 120 + 60 * np.sin(7 * x + 2) * np.cos(5 * y) + 50 * np.exp(-40 * ((x - 0.6) ** 2 + (y - 0.4) ** 2))
    return torch.tensor(picture, dtype=torch.float32)[None, None]


def one_warp(**settings):
    augmentation = Augmentation(**OFF | settings)
    draw = augmentation.draw(1, torch.Generator().manual_seed(2))
    return augmentation.warps(draw), draw


def inside(image):
    return image[..., 8:-8, 8:-8]  # away from what comes in at the edges


def test_a_sure_flip_mirrors_left_right():
    image = smooth_image()
    warps, _ = one_warp(flip=1)
    assert torch.allclose(warp(image, warps), image.flip(3), atol=1e-3)


def test_rotation_agrees_with_torchvision():
    image = smooth_image()
    warps, draw = one_warp(rotation=10)
    degrees = (draw[0, 0].item() * 2 - 1) * 10
    expected = reference.rotate(image, degrees, reference.InterpolationMode.BILINEAR)
    assert abs(degrees) > 2
    assert torch.allclose(inside(warp(image, warps)), inside(expected), atol=0.5)


def test_a_shift_is_a_share_of_the_side():
    image = smooth_image()
    warps, draw = one_warp(shift=0.1)
    right, down = ((draw[0, 1:3] * 2 - 1) * 0.1 * 48).tolist()
    expected = reference.affine(
        image, 0, [-right, -down], 1, [0, 0], interpolation=reference.InterpolationMode.BILINEAR
    )
    assert min(abs(right), abs(down)) > 0.5
    assert torch.allclose(inside(warp(image, warps)), inside(expected), atol=1)


def test_what_comes_in_from_outside_is_black():
    image = torch.full((1, 1, 20, 20), 200.0)
    shifted = warp(image, torch.tensor([[[1.0, 0, 0.5], [0, 1, 0]]]))
    assert (shifted[0, 0, :, :15] == 200).all()
    assert (shifted[0, 0, :, 16:] == 0).all()


def test_draws_stay_in_their_ranges_and_fill_them():
    warps = ALL.warps(ALL.draw(4000, torch.Generator().manual_seed(0)))
    degrees = torch.rad2deg(torch.atan2(warps[:, 1, 0], warps[:, 1, 1]))
    mirrored = torch.linalg.det(warps[:, :, :2]) < 0
    assert 9.9 < degrees.abs().max() <= 10.001
    assert 0.199 < warps[:, :, 2].abs().max() <= 0.2
    assert 0.45 < mirrored.float().mean() < 0.55
    sizes = torch.linalg.det(warps[:, :, :2]).abs().rsqrt()
    assert 0.8 <= sizes.min() < 0.801 and 1.249 < sizes.max() <= 1.2501


def test_brightness_multiplies_grey_values_up_to_white():
    images = np.full((64, 4, 4), 200, np.uint8)
    got, _ = collect(make(images).shuffled(Augmentation(**OFF | {"brightness": 0.5}), seed=0))
    grey = (got * 0.25 + 0.5) * 255
    assert grey.max() == pytest.approx(255, abs=0.01)
    assert 100 <= grey.min() < 110
    assert (grey.std(dim=(1, 2, 3)) < 0.01).all()  # one factor per image


def test_contrast_spreads_grey_values_around_their_mean():
    images = np.tile(np.array([[100, 140], [140, 100]], np.uint8), (64, 1, 1))
    got, _ = collect(make(images).shuffled(Augmentation(**OFF | {"contrast": 0.5}), seed=0))
    grey = (got * 0.25 + 0.5) * 255
    assert torch.allclose(grey.mean(dim=(1, 2, 3)), torch.tensor(120.0), atol=0.01)
    spread = grey.amax(dim=(1, 2, 3)) - grey.amin(dim=(1, 2, 3))
    assert 20 <= spread.min() < 25 and 55 < spread.max() <= 60.01


def test_a_zoom_agrees_with_torchvision():
    image = smooth_image()
    warps, draw = one_warp(scale=0.25)
    zoom = 1.25 ** (draw[0, 4].item() * 2 - 1)
    expected = reference.affine(image, 0, [0, 0], zoom, [0, 0], interpolation=reference.InterpolationMode.BILINEAR)
    assert abs(zoom - 1) > 0.05
    assert torch.allclose(inside(warp(image, warps)), inside(expected), atol=1)


def test_mean_and_deviation_are_those_of_the_given_rows():
    images = random_images(600)
    rows = np.arange(0, 600, 2)
    mean, deviation = measure(images, rows)
    assert mean == pytest.approx(images[rows].mean() / 255, abs=1e-9)
    assert deviation == pytest.approx(images[rows].std() / 255, abs=1e-9)
