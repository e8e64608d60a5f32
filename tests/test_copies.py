import numpy as np
import pytest
from PIL import Image

from braintumor.copies import find_copies, join_groups, mirrored, signature, similarity


def picture(seed, size=(64, 64)):
    cells = np.random.default_rng(seed).integers(0, 200, (8, 8), np.uint8)
    return np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))


def signatures(*greys):
    return np.stack([signature(grey) for grey in greys])


def test_similarity_is_the_correlation_of_block_means():
    left, right = picture(0, (224, 224)), picture(1, (224, 224))
    cells = [grey.reshape(32, 7, 32, 7).mean(axis=(1, 3)).ravel() for grey in (left, right)]
    views = [np.flip(cells[0].reshape(32, 32), axes).ravel() for axes in ((), 0, 1, (0, 1))]
    expected = max(np.corrcoef(view, cells[1])[0, 1] for view in views)
    assert similarity(*(signatures(grey) for grey in (left, right)))[0, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda grey: grey[:, ::-1],
        lambda grey: grey[::-1],
        lambda grey: grey[::-1, ::-1],
        lambda grey: (grey * 0.6 + 40).astype(np.uint8),
        lambda grey: np.asarray(Image.fromarray(grey).resize((150, 120))),
    ],
    ids=["left-right", "top-bottom", "both", "brightness", "size"],
)
def test_a_copy_is_found_whatever_was_done_to_it(change):
    groups, nearest, value = find_copies(
        signatures(picture(0), picture(1), change(picture(0))), ["a", "b", "c"], 0.99
    )
    assert groups.tolist() == [0, 1, 0]
    assert nearest[0] == 2 and nearest[2] == 0
    assert value[0] == value[2] > 0.99


def test_a_quarter_turn_is_no_copy():
    groups, _, _ = find_copies(signatures(picture(0), np.rot90(picture(0))), ["a", "b"], 0.99)
    assert groups.tolist() == [0, 1]


def test_images_of_one_value_are_copies_only_by_their_bytes():
    flat = signatures(*(np.full((9, 9), value, np.uint8) for value in (7, 7, 90)))
    assert not flat.any()
    assert find_copies(flat, ["a", "a", "b"], 0.99)[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_blocks_give_what_the_whole_matrix_gives(block):
    greys = [picture(seed) for seed in (0, 1, 2, 3)]
    rows = signatures(*greys, greys[2][:, ::-1], greys[0], picture(9), greys[2])
    whole = np.round(similarity(rows, rows), 4)
    np.fill_diagonal(whole, -np.inf)
    groups, nearest, value = find_copies(rows, [str(i) for i in range(8)], 0.99, block)
    assert groups.tolist() == [0, 1, 2, 3, 2, 0, 4, 2]
    assert np.allclose(value, whole.max(axis=1), atol=1e-4)
    assert nearest.tolist() == whole.argmax(axis=1).tolist()  # the first of several equal ones


def test_a_single_image_has_no_neighbour():
    groups, nearest, _ = find_copies(signatures(picture(0)), ["a"], 0.99)
    assert (groups.tolist(), nearest.tolist()) == ([0], [-1])


def test_mirroring_goes_left_right_then_top_bottom():
    grey = np.zeros((224, 224), np.uint8)
    grey[:7, :7] = 255  # one cell in the upper left corner
    corners = [np.argmax(view) for view in mirrored(signatures(grey))]
    assert corners == [0, 31, 31 * 32, 1023]


def test_groups_join_through_any_partition_and_unknown_joins_nothing():
    copies = [0, 1, 1, 2, 3, 4]
    patients = ["a", "a", None, "b", None, "b"]
    # a holds 0 and 1; 1 and 2 are copies; b holds 3 and 5.
    assert join_groups(copies, patients).tolist() == [0, 0, 0, 1, 2, 1]
    assert join_groups([5, 3, 5], [None, float("nan"), None]).tolist() == [0, 1, 0]
