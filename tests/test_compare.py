import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from braintumor.compare import main, match
from braintumor.errors import UserError
from braintumor.paired import compare_pairs, describe_comparison
from braintumor.tables import read_table


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_is_that_of_statsmodels(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(200) < 0.9, rng.random(200) < 0.85
    result = compare_pairs(a, b, np.arange(200), 100, seed=0)
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert result.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (result.only_a, result.only_b) == (table[0][1], table[1][0])
    assert result.difference == pytest.approx(b.mean() - a.mean())


def test_a_comparison_by_hand():
    # Ten images: A alone is right of one, B alone of five. Two-sided: 2 * (1 + 6) / 2^6.
    a = np.array([1, 0, 0, 0, 0, 0, 1, 1, 1, 0], bool)
    b = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0], bool)
    result = compare_pairs(a, b, np.arange(10), 2000, seed=0)
    assert result.p_value == pytest.approx(14 / 64)
    assert (result.right_a, result.right_b) == (4, 8)
    text = describe_comparison(result, "one", "two")
    assert "10 test images, 10 groups" in text
    assert "one: 40.00% right; 1 images that two gets wrong" in text
    assert "difference +40.00 points [" in text and "p = 0.22 (exact McNemar)" in text
    # Half a width of about 1.96 * sqrt((0.6 - 0.4^2) / 10).
    assert (result.low, result.high) == pytest.approx((0.4 - 0.41, 0.4 + 0.41), abs=0.12)


def test_equal_predictions_are_no_difference():
    right = np.array([True, False, True])
    result = compare_pairs(right, right, np.arange(3), 100, seed=0)
    assert (result.p_value, result.difference, result.low, result.high) == (1, 0, 0, 0)


def test_gains_within_one_group_are_no_certain_gain():
    a, b = np.zeros(40, bool), np.repeat([True, False], 20)
    single = compare_pairs(a, b, np.arange(40), 500, seed=0)
    grouped = compare_pairs(a, b, np.repeat([0, 1], 20), 500, seed=0)
    assert single.low > 0.3
    assert (grouped.low, grouped.high) == (0, 1)


def table(paths, classes="ab"):
    return pd.DataFrame(
        {"path": list(paths), "class": list(classes), "prediction": "a", "group": range(len(paths))}
    )


def test_tables_are_matched_by_path():
    a, b = match(table("xy"), table("yx", "ba"), "A", "B")
    assert a.index.tolist() == b.index.tolist() == ["x", "y"]
    assert a["class"].tolist() == b["class"].tolist()


def test_other_test_images_and_other_labels_are_errors():
    with pytest.raises(UserError, match=r"different images, 2 and 3: 1 are tested by B only, such as z"):
        match(table("xy"), table("xyz", "aba"), "A", "B")
    with pytest.raises(UserError, match=r"A and B file 1 images differently, such as x"):
        match(table("xy"), table("xy", "bb"), "A", "B")


def test_two_revisions_an_experiment_and_the_workspace_are_compared(checkout):
    file = checkout.folder / "data/predictions.csv"
    table = read_table(file)
    right = table["class"] == table["prediction"]
    images = len(table)
    turned = table.index[right][:2]  # the experiment is wrong about two more
    table.loc[turned, "prediction"] = table.loc[turned, "class"].map({"glioma": "notumor"}).fillna("glioma")
    file.unlink()  # a link into the cache
    table.to_csv(file, index=False)
    checkout.run("dvc commit --force --quiet evaluate && dvc exp save --name other")
    changed = checkout.run("python -m braintumor.compare HEAD other")
    assert changed.splitlines()[1].startswith(f"HEAD: {right.sum() / images:.2%} right; 2 images that other gets")
    assert changed.splitlines()[2].startswith(f"other: {(right.sum() - 2) / images:.2%} right; 0 images that HEAD")
    assert f"difference {-200 / images:+.2f} points [" in changed
    same = checkout.run("python -m braintumor.compare other workspace")
    assert "difference +0.00 points [+0.00, +0.00]" in same and "p = 1 " in same
    output = checkout.run("python -m braintumor.compare HEAD nonsense", code=1)
    assert output == "error: nonsense: neither git nor DVC knows such a revision or experiment\n"
    file.unlink()  # a link into the cache again
    table.iloc[:-1].to_csv(file, index=False)
    assert "are tested on different images" in checkout.run("python -m braintumor.compare HEAD workspace", code=1)


def test_predictions_that_no_cache_has_are_an_error(checkout):
    (checkout.folder / ".dvc/config.local").unlink()  # the cache of the project that this is a clone of
    output = checkout.run("python -m braintumor.compare HEAD workspace", code=1)
    assert "error: HEAD: its data/predictions.csv is not in DVC's cache; run dvc fetch" in output
    (checkout.folder / "data/predictions.csv").unlink()
    output = checkout.run("python -m braintumor.compare workspace HEAD", code=1)
    assert output.startswith("error: data/predictions.csv: is not in the checkout")


def test_a_wrong_param_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="error: params"):
        main(["HEAD", "workspace"])
