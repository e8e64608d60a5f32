import numpy as np
import pandas as pd
import pytest

from braintumor.errors import UserError
from braintumor.split import assign_subsets, describe_subsets, grouped_folds

SETTINGS = {"folds": 5, "fold": 0, "validation_folds": 4, "seed": 0}


def make_table(n=400, seed=0):
    """Images of 3 classes in 80 groups; copy groups are halves of groups; a third of them in Testing."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 80, n))
    return pd.DataFrame(
        {
            "path": [f"{i:03}.png" for i in range(n)],
            "folder": np.where(rng.random(n) < 0.3, "Testing", "Training"),
            "class": np.array(["a", "b", "c"])[group % 3],
            "copy_group": group * 2 + rng.integers(0, 2, n),
            "patient": [str(g) for g in group],
            "group": group,
        }
    )


def crossing(table, subset, column, names):
    """Return the groups of a column that have images in more than one of some subsets."""
    rows = np.isin(subset, names)
    counts = pd.Series(subset[rows]).groupby(table[column].to_numpy()[rows]).nunique()
    return counts[counts > 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("column", ["group", "copy_group"])
def test_no_group_is_in_two_subsets_whatever_it_is_joined_by(seed, column):
    table = make_table(seed=seed)
    table["group"] = table[column]
    subset = assign_subsets(table, "grouped", **SETTINGS | {"seed": seed})
    assert set(subset) == {"train", "validation", "test"}
    assert crossing(table, subset, "group", ["train", "validation", "test"]).empty


def test_what_validates_is_cut_off_as_the_test_set_is():
    # Copies of official test images are in training, and so are those of its validation images.
    table = make_table()
    subset = assign_subsets(table, "copy_free", **SETTINGS)
    assert crossing(table, subset, "copy_group", ["train", "validation"]).empty
    assert not crossing(table, subset, "group", ["train", "validation"]).empty
    subset = assign_subsets(table, "official", **SETTINGS)
    assert len(crossing(table, subset, "copy_group", ["train", "validation"])) > 20
    rest = table[subset != "test"]
    shares = (subset == "validation")[subset != "test"]
    assert pd.Series(shares, rest.index).groupby(rest["class"]).mean().tolist() == pytest.approx(
        [0.25] * 3, abs=0.01
    )


def test_every_image_is_tested_once_over_the_folds():
    table = make_table()
    tested = sum(
        (assign_subsets(table, "grouped", **SETTINGS | {"fold": fold}) == "test").astype(int) for fold in range(5)
    )
    assert (tested == 1).all()


def test_folds_have_about_equal_shares_of_each_class():
    table = make_table(3000)
    shares = [(table["class"].iloc[fold] == "a").mean() for fold in grouped_folds(table, 5, seed=0)]
    sizes = [len(fold) for fold in grouped_folds(table, 5, seed=0)]
    assert max(shares) - min(shares) < 0.05
    assert max(sizes) - min(sizes) < 60  # groups have 37 images on average


def test_official_tests_on_testing_and_uses_all_of_training():
    table = make_table()
    subset = assign_subsets(table, "official", **SETTINGS)
    assert ((subset == "test") == (table["folder"] == "Testing")).all()
    assert "unused" not in subset


def test_copy_free_leaves_out_the_copies_of_test_images_and_nothing_else():
    table = make_table()
    subset = assign_subsets(table, "copy_free", **SETTINGS)
    tested = set(table["copy_group"][table["folder"] == "Testing"])
    copied = (table["folder"] == "Training") & table["copy_group"].isin(tested)
    assert copied.any()
    assert ((subset == "unused") == copied).all()


def test_seed_trains_on_training_and_halves_testing():
    table = make_table()
    table["folder"] = ["Testing"] * 131 + ["Training"] * 269
    subset = assign_subsets(table, "seed", **SETTINGS)
    assert (subset[131:] == "train").all()
    # 1,311 images were cut into 655 and 656, so an odd one goes to the test set.
    assert ((subset == "validation").sum(), (subset == "test").sum()) == (65, 66)


@pytest.mark.parametrize("protocol", ["official", "copy_free", "seed"])
def test_without_a_testing_folder_a_fold_stands_for_it(protocol):
    table = make_table().assign(folder="Training")
    subset = assign_subsets(table, protocol, **SETTINGS)
    pooled = assign_subsets(table, "grouped", **SETTINGS)
    tested = ["test", "validation"] if protocol == "seed" else ["test"]
    assert (np.isin(subset, tested) == (pooled == "test")).all()


def test_the_seed_decides_the_cut():
    table = make_table()
    first, again, other = (assign_subsets(table, "grouped", **SETTINGS | {"seed": s}) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_class_that_a_subset_lacks_is_an_error():
    table = make_table()
    table.loc[table["class"] == "c", "group"] = 999  # one group cannot be in three subsets
    lacking = r"class c has no image in the .* set; its .* images in 1 groups need a lower split.folds or"
    with pytest.raises(UserError, match=lacking):
        assign_subsets(table, "grouped", **SETTINGS)


def test_fewer_groups_than_folds_is_an_error():
    table = make_table().assign(group=0)
    with pytest.raises(UserError, match="400 images in 1 groups are too few for 5 folds"):
        assign_subsets(table, "grouped", **SETTINGS)


def test_subsets_are_counted_by_class():
    split = pd.DataFrame({"class": ["a", "a", "b"], "subset": ["test", "train", "train"]})
    lines = [line.split() for line in describe_subsets(split).splitlines()]
    assert lines[0] == ["subset", "train", "test", "all"]
    assert lines[2:] == [["a", "1", "1", "2"], ["b", "1", "0", "1"], ["all", "2", "1", "3"]]


def make_sources():
    """Class a is all 512 x 512, b has both sizes; one of b's 512 x 512 images is a copy of a smaller one."""
    n = 40
    table = pd.DataFrame(
        {
            "class": ["a"] * n + ["b"] * n,
            "folder": "Training",
            "width": [512] * n + [512, 300] * (n // 2),
            "height": 512,
            "mode": ["L", "RGB"] * n,
            "patient": ["1"] * n + [None] * n,
            "group": range(2 * n),
            "copy_group": range(2 * n),
        }
    )
    table.loc[41, "group"] = 40
    return table


@pytest.mark.parametrize("fold", [0, 1])
def test_a_source_tests_and_the_other_trains_where_a_class_has_both(fold):
    table = make_sources()
    subset = assign_subsets(table, "source", **SETTINGS | {"fold": fold}, source="square512")
    square = (table["width"] == 512).to_numpy()
    b = (table["class"] == "b").to_numpy()
    held_out = square if fold == 0 else ~square
    assert ((subset == "test")[b] == held_out[b]).all()
    # Its copy is on the other side and neither trains nor tests.
    assert np.flatnonzero(subset == "unused").tolist() == [41 if fold == 0 else 40]
    assert crossing(table, subset, "group", ["train", "validation", "test"]).empty
    # Class a has one source only: a fold of it tests.
    assert (subset == "test")[~b].sum() == 8


def test_a_source_that_no_class_can_do_without_is_an_error():
    with pytest.raises(UserError, match=r"split\.source: no class has images of both kinds of patient_known"):
        assign_subsets(make_sources(), "source", **SETTINGS, source="patient_known")
    with pytest.raises(UserError, match="has the folds 0 and 1, got 2"):
        assign_subsets(make_sources(), "source", **SETTINGS | {"fold": 2}, source="mode")
