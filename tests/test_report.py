"""The report in a real browser, over the tiny pipeline."""

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest

from braintumor.intervals import named
from braintumor.params import load_params, with_overrides
from braintumor.provenance import measured_on
from braintumor.report import border_tells, claim, folds_text, limits, protocol_of
from braintumor.results import ABSENT, percent, with_interval
from braintumor.sections import deployed_rows
from braintumor.tables import read_table
from tests.conftest import PROJECT

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def page_file(finished):
    return finished.folder / "report" / "index.html"


@pytest.fixture(scope="module")
def text(page_file):
    return page_file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def opened(browser, page_file):
    """Open the report at a width and a colour scheme; what the console says and what is asked for is kept."""
    pages = []

    def open_page(width=1440, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        inside = ("file:", "data:")
        page.on("request", lambda r: None if r.url.startswith(inside) else page.complaints.append(r.url))
        page.goto(page_file.as_uri())
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()


@pytest.mark.parametrize(
    ("protocol", "testing", "label", "words"),
    [
        ("grouped", 0, "New people", "This is fold 1 of 3."),
        ("official", 0, "New people", "This is fold 1 of 3."),
        ("seed", 0, "New people", "The other half of the fold chose the epoch, and shares people and copies"),
        ("seed", 9, "Half of the official test folder", "The other half of the folder Testing chose the epoch"),
        ("source", 0, "Images of another source", "Here: mode."),
        ("source", 9, "Images of another source", "Here: mode."),
    ],
)
def test_the_page_says_what_the_split_has_done(protocol, testing, label, words):
    params = load_params(PROJECT / "params.yaml").model_dump()
    overrides = {"split.protocol": protocol, "split.folds": 3, "split.fold": 1, "split.source": "mode"}
    results = SimpleNamespace(metrics={"data": {"testing_images": testing, "patients": 5}})
    said, sentence = protocol_of(results, with_overrides(params, overrides))
    assert said == label and words in sentence


@pytest.mark.parametrize(
    ("border", "told"),
    [((0.86, 0.84, 0.87), "part of any score here is about scanners"), ((0.3, 0.25, 0.35), "that shows nothing")],
)
def test_the_border_speaks_of_sources_only_where_it_tells_more_than_the_commonest_class(border, told):
    sides = {"majority": (0.28, 0.26, 0.31), "border": border}
    table = pd.DataFrame(
        [[name, *values] for name, values in sides.items()], columns=["baseline", "accuracy", "low", "high"]
    )
    counts = {"images_of_known_patients": 1, "images": 2, "contradictory_copy_groups": 0}
    results = SimpleNamespace(metrics={"data": counts, "test": {"images": 2}}, tables={"baselines": table})
    (said,) = [line for line in limits(results, load_params(PROJECT / "params.yaml")) if "border" in line]
    assert told in said
    assert border_tells(table) == ("scanners" in told)


@pytest.mark.parametrize(
    ("right", "number", "line"),
    [
        ((0.9654, 0.939, 0.9806), "96.5%", "Right: 96.5% [93.9, 98.1] of the 318 test images that have no copy"),
        (None, ABSENT, "All test images have a copy in training."),
    ],
)
def test_the_official_split_is_shown_beside_its_images_without_a_copy(right, number, line):
    data = {"testing_images": 9, "copied_testing_images": 5, "patients_in_both": 1, "patients_in_testing": 2}
    test = {"images_copy_free": 318 if right else 0} | (named("accuracy_copy_free", right) if right else {})
    params = with_overrides(load_params(PROJECT / "params.yaml").model_dump(), {"split.protocol": "official"})
    said = claim(SimpleNamespace(metrics={"data": data, "test": test}), params)
    assert said["number"] == number and said["lines"][0].startswith(line)


def test_all_folds_are_summed_up_where_the_table_has_each_of_them():
    params = with_overrides(load_params(PROJECT / "params.yaml").model_dump(), {"split.folds": 3})
    rows = pd.DataFrame(
        {
            "protocol": ["grouped"] * 4 + ["official"],
            "group_by": ["patient"] * 3 + ["copy", "patient"],
            "fold": [2, 0, 1, 0, 0],
            "accuracy": [0.94, 0.95, 0.96, 0.5, 0.5],
            "distinct_accuracy": [0.93, 0.93, 0.93, 0.5, 0.5],
        }
    )
    # Student's t: 4.303 (0.975, 2 degrees of freedom) times 1 / sqrt(3) on each side.
    said = folds_text(SimpleNamespace(seeds=rows), params)
    assert "95.0% [92.5, 97.5], from 94.0% to 96.0%; distinct pictures 93.0% [93.0, 93.0]" in said
    assert folds_text(SimpleNamespace(seeds=rows.iloc[1:]), params) == ""
    assert folds_text(SimpleNamespace(seeds=None), params) == ""


def test_a_share_is_written_as_all_or_none_only_where_it_is():
    assert [percent(value) for value in (0, 0.0004, 0.95577, 0.9996, 1)] == [
        "0.0%",
        "< 0.1%",
        "95.6%",
        "> 99.9%",
        "100%",
    ]
    scores = {"accuracy": 0.95577, "accuracy_low": 0.9438, "accuracy_high": 0.96535}
    assert with_interval(scores, "accuracy") == "95.6% [94.4, 96.5]"
    assert with_interval(scores, "accuracy_copied") == "\u2013"


def test_the_answer_stands_first_with_its_interval_and_the_warning(text, finished):
    test = json.loads((finished.folder / "metrics/test.json").read_text())
    answer = text[text.index('id="answer"') : text.index('id="data"')]
    assert percent(test["accuracy"]) in answer
    assert f"{percent(test['accuracy_low'])} to {percent(test['accuracy_high'])}" in answer
    assert "Research only, not a medical device." in answer
    # Made-up images have no official score: the committed seeds are of other images.
    assert "Not measured on these images" in answer


def test_the_sections_stand_in_their_order_and_show_every_picture_once(text, finished):
    expected = [
        "answer",
        "data",
        "training",
        "evaluation",
        "errors",
        "saliency",
        "use",
        "environment",
        "card",
        "limits",
    ]
    assert re.findall(r'<section id="([^"]*)"', text) == expected
    parts = dict(zip(expected, text.split("<section id=")[1:], strict=True))
    drawn = {file.stem for file in (finished.folder / "plots/explain").glob("*.png")}
    sheets = {name for name in drawn if not name.startswith("gradcam_errors")}  # the gallery has those
    assert len(sheets) >= 9 and parts["saliency"].count("<img ") == len(sheets)
    predictions = read_table(finished.folder / "data/predictions.csv")
    wrong = (predictions["class"] != predictions["prediction"]).sum()
    assert parts["errors"].count("<img ") == 3 * wrong
    manifest = read_table(finished.folder / "data/manifest.csv")
    contradictory = manifest.groupby("copy_group")["class"].nunique()
    shown = manifest[manifest["copy_group"].isin(contradictory[contradictory > 1].index)]
    ones = len(shown.drop_duplicates(["copy_group", "class"]))
    # The overview, eight pairs of copies, and one image of each class of a contradictory picture.
    assert ones >= 2 and parts["data"].count("<img ") == 1 + 2 * 8 + ones
    assert f"filed under more than one class: {(contradictory > 1).sum()}." in parts["data"]
    assert [parts[name].count("<svg") for name in ("training", "evaluation")] == [3, 6]


def test_the_confusion_matrix_counts_the_predictions(text, finished):
    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.inside, self.counts = False, []

        def handle_starttag(self, tag, attributes):
            self.inside = tag == "td" and "--share" in dict(attributes).get("style", "")

        def handle_data(self, data):
            if self.inside and data.isdigit():
                self.counts.append(int(data))

    cells = Cells()
    cells.feed(text)
    predictions = read_table(finished.folder / "data/predictions.csv")
    classes = sorted(predictions["class"].unique())
    expected = pd.crosstab(predictions["class"], predictions["prediction"])
    expected = expected.reindex(index=classes, columns=classes, fill_value=0)
    assert cells.counts == expected.to_numpy().ravel().tolist()


def test_every_wrong_image_is_in_the_gallery(text, finished):
    predictions = read_table(finished.folder / "data/predictions.csv")
    wrong = predictions[predictions["class"] != predictions["prediction"]]
    shown = re.findall(r'<li data-class="([^"]*)" data-prediction="([^"]*)".*?data-name="([^"]*)"', text)
    assert sorted(shown) == sorted(wrong[["class", "prediction", "path"]].itertuples(index=False, name=None))


def test_the_risk_of_the_most_certain_images_stands_under_its_chart(text, finished):
    calibration = json.loads((finished.folder / "metrics/calibration.json").read_text())
    for share in (90, 80):
        assert with_interval(calibration, f"risk_coverage_{share}") in text


def test_the_model_card_has_the_result(finished):
    test = json.loads((finished.folder / "metrics/test.json").read_text())
    card = (finished.folder / "models/README.md").read_text()
    assert with_interval(test, "accuracy") in card and with_interval(test, "accuracy_distinct") in card
    low, high = (f"{100 * test[f'accuracy_groups_{end}']:.1f}" for end in ("low", "high"))
    assert f"the first is {low} to {high}%" in card  # Wilson's is too narrow where images are of the same people
    assert "Research only, not a medical device" in card


def test_equal_inputs_give_an_equal_page(finished, checkout):
    before = (checkout.folder / "report/index.html").read_bytes()
    commit = finished.run("git rev-parse HEAD~1").strip().encode()
    assert commit in before  # made before the results were committed
    checkout.run("dvc repro --single-item --force report")
    now = checkout.run("git rev-parse HEAD").strip().encode()
    assert (checkout.folder / "report/index.html").read_bytes() == before.replace(commit, now)


def test_times_are_shown_of_the_model_that_they_were_measured_on(tmp_path):
    model, latency = tmp_path / "model.onnx", tmp_path / "latency.json"
    model.write_bytes(b"model")
    assert measured_on(latency, model) is None
    measured = {
        "onnx_sha256": hashlib.sha256(b"model").hexdigest(),
        "device": "one thread",
        "milliseconds": {"onnxruntime": {"one": 1.24, "each_of_64": 1.31}},
    }
    latency.write_text(json.dumps(measured))
    assert measured_on(latency, model) == measured
    export = {"onnx_bytes": 10**6, "onnx_max_difference": 1e-6}
    export |= {"novelty_flagged_test": 0.02, "novelty_flagged_test_low": 0.01, "novelty_flagged_test_high": 0.03}
    expected = ["time in onnxruntime", "1.2 ms for one image, 1.3 ms for each of 64 (one thread)"]
    assert expected in deployed_rows(export, measured) and expected not in deployed_rows(export, None)
    assert ["test images marked as unlike the training images", "2.0% [1.0, 3.0]"] in deployed_rows(export, None)
    model.write_bytes(b"another")
    assert measured_on(latency, model) is None


@pytest.mark.slow
def test_a_report_without_an_error_says_so(checkout):
    data = checkout.folder / "data"
    predictions = read_table(data / "predictions.csv").assign(prediction=lambda table: table["class"])
    explained = read_table(data / "saliency.csv").assign(prediction=lambda table: table["class"], right=True)
    for name, table in (("predictions", predictions), ("saliency", explained)):
        (data / f"{name}.csv").unlink()  # a link into the cache
        table.to_csv(data / f"{name}.csv", index=False)
    checkout.run("dvc repro --single-item --force report")
    page = (checkout.folder / "report/index.html").read_text(encoding="utf-8")
    assert "No test image was wrong" in page
    assert "<li data-class" not in page


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_the_page_loads_alone_and_nothing_overflows(opened, width, scheme):
    page = opened(width, scheme)
    page.wait_for_load_state()
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    assert page.evaluate("document.images.length") > 10 and page.evaluate(broken) == 0
    charts = page.locator("figure.chart svg[role=img][aria-label]")
    assert charts.count() == page.locator("figure.chart").count() == 9


@needs_chromium
def test_on_paper_it_is_black_on_white_and_nothing_sticks_out(opened):
    page = opened(794, "dark")  # A4 at 96 dots an inch
    page.emulate_media(media="print")
    style = "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    assert page.evaluate(style) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert page.locator(".controls").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 794


@needs_chromium
def test_the_gallery_is_filtered_and_sorted(opened, finished):
    page = opened()
    predictions = read_table(finished.folder / "data/predictions.csv")
    wrong = predictions[predictions["class"] != predictions["prediction"]]
    name = wrong["class"].iloc[0]
    page.select_option("#by-class", name)
    shown = page.locator("#gallery li:visible")
    assert shown.count() == (wrong["class"] == name).sum() > 0
    assert page.inner_text("#shown") == f"{shown.count()} of {len(wrong)} images"
    page.select_option("#by-class", "")
    called = wrong["prediction"].iloc[0]
    page.select_option("#by-prediction", called)
    assert shown.count() == (wrong["prediction"] == called).sum() > 0
    page.select_option("#by-prediction", "")
    page.select_option("#order", "-confidence")
    certainty = page.eval_on_selector_all("#gallery li", "all => all.map(one => Number(one.dataset.confidence))")
    assert certainty == sorted(certainty) and len(set(certainty)) > 1
    page.select_option("#order", "similarity")
    alike = page.eval_on_selector_all("#gallery li", "all => all.map(one => Number(one.dataset.similarity))")
    assert alike == sorted(alike, reverse=True) and len(set(alike)) > 1
    page.select_option("#order", "class")
    by_class = page.eval_on_selector_all(
        "#gallery li", "all => all.map(one => [one.dataset.class, -one.dataset.confidence])"
    )
    assert by_class == sorted(by_class) and len({name for name, _ in by_class}) > 1
    page.select_option("#order", "name")
    names = page.eval_on_selector_all("#gallery li", "all => all.map(one => one.dataset.name)")
    assert len(names) == len(wrong) and sorted(names, key=str.lower) == names
    page.fill("#by-confidence", "100")
    assert page.inner_text("#shown").startswith("0 of")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_a_screen_reader_meets_nothing_serious(opened, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(opened(width, scheme)).response["violations"]
    serious = [one for one in violations if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []
