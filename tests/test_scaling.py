import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from braintumor import muon
from braintumor.params import load_params, with_overrides
from scripts import rates, scaling
from scripts.scaling import A, Design, Step, Work
from tests.conftest import PROJECT

STEP = Step(operations=1000, fixed_bytes=0, image_bytes=A["card_bandwidth"] / 1e4, image_flops=0)
WORK = Work(
    step=STEP,
    share=0.5,
    least=1e-6,
    image_bytes=1e4,
    table_bytes=100,
    gradient_bytes=1e6,
    cpu=0.01,
    gather=1e-5,
    bookkeeping=0,
)
MEASURED = """
training feed scores order gather disk disk_bytes advised advised_bytes memcpy md5 fingerprint mean audit
audit_bytes preprocess copies copies_small folds table table_bytes dvc_add dvc_bytes dvc_idle dvc_start
"""
RATES = dict.fromkeys(MEASURED.split(), 1e3)


def design(*feeds, **changes):
    return replace(Design("x", feeds, memory=1e9, read=1e-3, read_bytes=1e5, disk=1e8), **changes)


def test_a_card_is_as_slow_as_its_memory_its_arithmetic_or_its_operations():
    assert scaling.card_seconds(50, WORK) == pytest.approx(0.01)
    a_second_more = replace(STEP, fixed_bytes=A["card_bandwidth"] / 2)
    assert scaling.card_seconds(50, replace(WORK, step=a_second_more)) == pytest.approx(1.01)
    arithmetic = replace(STEP, image_flops=A["card_flops"] * A["flops_share"])
    assert scaling.card_seconds(50, replace(WORK, step=arithmetic)) == pytest.approx(50)
    assert scaling.card_seconds(50, replace(WORK, least=1)) == pytest.approx(1)


def test_an_all_reduce_moves_nearly_twice_the_bytes_and_waits_for_each_hop():
    assert scaling.all_reduce_seconds(
        100,
        4,
        50,
    ) == pytest.approx(2 * 3 / 4 * 2 + 4 * A["hop"])
    assert scaling.all_reduce_seconds(100, 1, 50) == 0


def test_images_lie_in_the_card_then_in_the_page_cache_then_on_disk_until_the_tables_fill_the_memory():
    every = design("resident", "cached", "disk", memory=1e12)
    assert scaling.choose_feed(every, 4e6, WORK) == "resident"  # 40 GB, half of a card
    assert scaling.choose_feed(every, 4.1e6, WORK) == "cached"
    assert scaling.choose_feed(every, 1e12 / 10_100 - 1, WORK) == "cached"
    assert scaling.choose_feed(every, 1e12 / 10_100 + 1, WORK) == "disk"
    assert scaling.choose_feed(every, 1e10 - 1, WORK) == "disk"
    assert scaling.choose_feed(every, 1e10 + 1, WORK) is None
    assert scaling.choose_feed(design("resident", memory=1e12), 4.1e6, WORK) is None
    assert scaling.missed_share(design("disk"), 2e5, WORK) == pytest.approx(1 - (1e9 - 2e7) / 2e9)
    assert scaling.missed_share(design("disk", cards=8), 2e5, WORK) == pytest.approx(1 - (1e9 - 16e7) / 2e9)


def test_one_thread_launches_and_reads_rows():
    launching = A["launch"]  # of one graph
    busy = scaling.step_seconds(design("resident"), 1e5, 100, WORK)
    assert busy == pytest.approx({"disk": 0, "card": 0.02, "launches": launching, "PCIe": 0})
    busy = scaling.step_seconds(design("cached"), 9e4, 100, WORK)
    assert busy["row reads"] == pytest.approx(launching + 100 * 1e-5)
    assert busy["PCIe"] == pytest.approx(100 * 1e4 / A["pcie"])
    busy = scaling.step_seconds(design("disk"), 2e5, 100, WORK)
    assert busy["row reads"] == pytest.approx(launching + 100 * (0.51 * 1e-3 + 0.49 * 1e-5))
    assert busy["disk"] == pytest.approx(100 * 0.51 * 1e5 / 1e8)


def test_a_cpu_reads_rows_and_computes_by_turns():
    busy = scaling.step_seconds(design("disk", cards=0), 2e5, 100, WORK)
    assert busy["CPU"] == pytest.approx(100 * (0.01 + 0.51 * 1e-3))


def test_all_processes_share_a_disk_and_sum_gradients_between_machines():
    eight = design("disk", cards=8, nodes=8)
    busy = scaling.step_seconds(eight, 2e5, 10, WORK)
    assert busy["disk"] == pytest.approx(64 * 10 * 0.58 * 1e5 / 1e8)
    assert busy["row reads"] == pytest.approx(1000 * A["launch"] + 10 * (0.58 * 1e-3 + 0.42 * 1e-5))
    assert busy["network"] == pytest.approx(scaling.all_reduce_seconds(1e6, 64, A["infiniband"]))
    assert busy["asking"] == pytest.approx(126 * A["asked"] / 8)  # 64 processes answer within eight steps
    assert scaling.step_seconds(replace(eight, nodes=1), 2e5, 10, WORK)["asking"] == pytest.approx(14 * A["asked"])


def test_an_epoch_lasts_as_its_busiest_resource_and_its_bookkeeping():
    images = 1000 * A["batch"]
    step = A["batch"] / 5000
    one, eight = design("resident"), design("resident", cards=8)
    work = replace(WORK, image_bytes=1)
    assert scaling.epoch_seconds(one, images, work) == (pytest.approx(1000 * step), "card")
    assert scaling.epoch_seconds(eight, images, work) == (pytest.approx(125 * step), "card")
    kept = replace(work, bookkeeping=1)
    assert scaling.epoch_seconds(one, images, kept) == (pytest.approx(1000 * step + images), "bookkeeping")
    assert math.isnan(scaling.epoch_seconds(one, 1e12, work)[0])


def test_a_small_set_makes_small_steps_and_one_a_process():
    seconds, bound = scaling.epoch_seconds(design("resident", cards=8), 80, WORK)
    assert (seconds, bound) == (pytest.approx(1000 * A["launch"]), "launches")


def test_the_search_for_copies_grows_with_the_square():
    small, large = (scaling.stage_seconds(n, RATES, 100) for n in (1000, 10_000))
    assert small["audit: search for copies"] == 500 and large["audit: search for copies"] == 50_000
    assert large["audit: reading"] == 10 * small["audit: reading"] == 10
    assert small[scaling.BEFORE] == pytest.approx(1000 * (100 / 1e3 + 100 / 1e3 + 1 / 1e3))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.4824, "0.48"), (31.4, "31"), (310.4, "310"), (4749, "4,700"), (1.56e6, "1.6 million")],
)
def test_numbers_have_two_digits(value, text):
    assert scaling.number(value) == text


def test_durations_have_a_unit_that_suits_them():
    values = (0.0123, 119, 121, 7300, 200_000, 1e9, math.nan)
    assert [*map(scaling.duration, values)] == ["0.012 s", "119 s", "2 min", "2 h", "2.3 days", "32 years", "-"]


def test_the_tables_take_the_place_of_the_old_ones():
    page = (PROJECT / "docs/scaling.md").read_text()
    assert page.count("<!-- scaling -->") == page.count("<!-- /scaling -->") == 1
    parts = scaling.report(RATES, replace(WORK, bookkeeping=1), 0.1).split("\n\n")
    tables = [part.splitlines() for part in parts if part.startswith("|")]
    assert len(tables) == 6
    assert all(len({row.count(" | ") for row in table}) == 1 for table in tables)
    assert len(scaling.draw(RATES, WORK).axes) == 2


def test_a_step_is_counted_as_by_hand(monkeypatch):
    calls = []
    monkeypatch.setattr(muon, "orthogonal_together", lambda matrices: calls.append(1) or matrices)

    def network():
        layers = nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(OrderedDict(body=nn.Sequential(*layers), head=nn.Linear(4, 4)))

    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    step = rates.count_step(network, 16, (2, 4), with_overrides(content, {"train.lr": "auto"}))
    # The convolution's products forward and for its weights, the layer's also for its input; two each.
    assert step.image_flops == 2 * 2 * 9 * 4 * 16**2 + 3 * 2 * 4 * 4
    assert step.operations > 50 and step.fixed_bytes > 0
    assert calls  # Muon's steps are counted as a GPU takes them
    assert step.image_bytes > 2 * 4 * 16**2 * 2  # what the convolution gives in bfloat16, written and read


def test_views_and_memory_that_is_set_aside_are_no_operations():
    stack = torch.ones(2, 3, 3)
    with rates.Counter() as counter:
        torch.empty(3)
        stack.mT @ stack  # a view, the product, and a view of it
    assert (counter.operations, counter.bytes) == (1, 3 * stack.nbytes)


def test_every_rate_is_measured(tmp_path):
    params = load_params(PROJECT / "params.yaml")
    r = rates.measure_array(tmp_path, 16, 2000) | rates.measure_files(tmp_path, 16, 3)
    r |= rates.measure_copies((32, 64)) | rates.measure_tables(tmp_path, 400)
    layers = {"body": nn.Flatten(), "head": nn.Linear(256, 4)}
    r |= rates.measure_training(lambda: nn.Sequential(OrderedDict(layers)), 16, params, 18)
    assert {name for name in RATES if not name.startswith("dvc")} == set(r)
    assert all(value > 0 for name, value in r.items() if name not in ("disk_bytes", "advised_bytes"))


def test_rows_announced_are_read_within_the_file(tmp_path):
    rates.measure_array(tmp_path, 16, 100)
    rates.read_rows(tmp_path / "images.npy", [0, 50, 99], advised=True)
