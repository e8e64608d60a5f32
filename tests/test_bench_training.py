import json
import os
import time
from statistics import median

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from braintumor.batches import Batches
from braintumor.errors import UserError
from braintumor.images import read_image, resize_square
from braintumor.phantom import make_phantom
from braintumor.tables import list_images
from scripts import bench_report
from scripts.bench_layers import flops_of, layer_calls
from scripts.bench_setup import QUICK, Bench, elsewhere, interleaved
from scripts.bench_training import SECTIONS, USUAL, Contiguous, main, train_as_seed
from scripts.seed_procedure import SeedTraining, make_loader, seed_network

CPU = torch.device("cpu")


@pytest.fixture
def project(tmp_path):
    """A folder with a made-up dataset and its manifest."""
    raw = tmp_path / "data" / "raw"
    make_phantom(raw, patients=12, seed=1)
    table = pd.DataFrame({"path": list_images(raw)})
    table[["folder", "class"]] = table["path"].str.split("/", expand=True)[[0, 1]]
    table["copy_group"] = table["group"] = range(len(table))
    table.to_csv(tmp_path / "data" / "manifest.csv", index=False)
    return tmp_path


def rows_of(page, first):
    """The cells of the rows that begin with some text."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if f"| {first}" in line]


@pytest.mark.slow
def test_it_writes_the_page_the_figures_and_the_plot(project):
    results = main(project, list(SECTIONS), QUICK)
    assert json.loads((project / "metrics/benchmark.json").read_text()) == json.loads(json.dumps(results))
    assert list(results) == list(SECTIONS)
    page = (project / "docs/benchmark.md").read_text()
    # The seed's whole training is told where ours is.
    assert page.count("*Measured ") == len(SECTIONS) - 1
    assert np.asarray(Image.open(project / "docs/benchmark.png").convert("L")).std() > 10

    whole, files = results["whole_seed"], list_images(project / "data/raw")
    training = [name for name in files if name.startswith("Training/")]
    assert whole["images"] == len(training)
    assert whole["validation_images"] == (len(files) - len(training)) // 2
    squares = np.stack([resize_square(read_image(project / "data/raw" / name, 32).grey, 32) for name in training])
    assert whole["mean"] == pytest.approx(squares.mean() / 255, abs=1e-6)
    assert whole["deviation"] == pytest.approx(squares.std() / 255, abs=1e-6)
    assert abs(squares[:16].mean() / 255 - whole["mean"]) > 1e-4  # some would not do
    assert "whole_seed" not in USUAL and {*USUAL, "whole_seed"} == set(SECTIONS)

    larger, cnn3 = results["batch_sizes"], results["arithmetic"]["networks"]["cnn3"]
    assert list(larger["step_seconds"]) == ["4 eager", "8 eager"]
    assert larger["flops_per_image"] == cnn3["flops"]["step"] / 4

    speed = {side: median(taken) for side, taken in results["seed"]["images_per_second"].items()}
    (row,) = rows_of(page, "training cnn3")
    assert row[3] == f"{speed['ours'] / speed['seed']:.2f} times"  # of a single round
    seconds = {side: median(taken) for side, taken in results["feeding"]["seconds"].items()}
    (row,) = rows_of(page, "default network, 32")
    assert row[3] == f"{100 * seconds['feeding'] / seconds['step']:.1f}%"
    for switch, off in (
        ("channels_last, not contiguous", "contiguous"),
        ("freed memory kept, not handed back", "memory handed back"),
    ):
        (row,) = rows_of(page, switch)
        for gain, network in zip(row[2::2], results["switches"]["networks"].values(), strict=True):
            sides = network["images_per_second"]
            assert gain == f"{median(sides['as it is']) / median(sides[off]):.2f} times"
    (found,) = rows_of(page, "ten times as many")
    assert found[2] == f"{results['memory']['arrays']['ten times']['peak_gb']:.2f} GB"
    for network in results["arithmetic"]["networks"].values():
        # The layers alone have the operations of the whole.
        assert sum(part["flops"] for part in network["parts"].values()) == network["flops"]["step"]
        whole = median(network["seconds"][f"step {network['precision']}"])
        assert sum(s for _, s in bench_report.parts_of(network).values()) == pytest.approx(whole)


@pytest.mark.slow
def test_one_section_leaves_the_others_as_they_are(tmp_path, capsys):
    first = main(tmp_path, ["feeding"], QUICK)
    second = main(tmp_path, ["time", "seed"], QUICK)
    assert "left out: needs data/raw" in capsys.readouterr().out
    assert list(second) == ["feeding", "seed"]
    assert json.loads(json.dumps(first["feeding"])) == second["feeding"]
    assert "made-up images" in (tmp_path / "docs/benchmark.md").read_text()


def speed(seed, keeping=(24,), machine="a CPU"):
    """What the section on the seed's speed has found."""
    return {"machine": machine, "images_per_second": {"seed": list(seed), "seed_keeping_memory": list(keeping)}}


def test_time_to_an_accuracy_is_that_of_the_first_epoch_that_has_it():
    found = {
        "machine": "a CPU",
        "seed_epochs": 10,
        "seed_images": 1200,
        "decoding_seconds": 5.0,
        "curve": [(10.0, 0.8, 0.7), (20.0, 0.93, 0.7), (30.0, 0.92, 0.7), (40.0, 0.95, 0.7)],
        "grouped_images": 600,
        "grouped_curve": [(5.0, 0.9, 0.94), (10.0, 0.93, 0.93), (15.0, 0.92, 0.95)],
        "epochs": 40,
        "flops_per_image": 1e12,
    }
    page = bench_report.write_time(found, {"time": found, "seed": speed([9, 12, 50])})
    (row,) = rows_of(page, "93.0%")
    assert row[1:4] == ["16.7 min", "25 s", "40.0 times"]  # 10 x 1200 / 12 s against 5 s + 20 s
    assert "2.00 times as fast, by the section above, and the\ngain would be about 20 times" in page
    # Speeds of another machine say nothing about the time on this one.
    elsewhere = {"time": found, "seed": speed([12], machine="another CPU")}
    assert "kept freed memory" not in bench_report.write_time(found, elsewhere)
    assert "That training is not repeated here" in page
    tested, validated = rows_of(page, "to 94.0%")
    assert tested[1:] == ["1", "5 s", "0.6 PFLOP"]
    assert validated[1:] == ["not reached", "", ""]
    (row,) = rows_of(page, "all")
    assert row[1:] == ["3", "15 s", "1.8 PFLOP"]
    axis = Figure().subplots()
    bench_report.draw_time(axis, {"time": found, "seed": speed([12])})
    (_, ours, theirs) = axis.lines
    assert ours.get_xydata().tolist() == [[10, 0.8], [20, 0.93], [30, 0.92], [40, 0.95]]
    assert theirs.get_xydata().tolist() == [[1000, 0.93]]
    page = bench_report.write_time(found | {"curve": [(10.0, 0.8, 0.7)]}, {"time": found, "seed": speed([12])})
    assert rows_of(page, "93.0%")[0][1:4] == ["16.7 min", "not reached", ""]


def test_time_of_the_seed_is_that_of_its_training_where_it_ran():
    found = {
        "seed_epochs": 10,
        "seed_images": 1200,
        "decoding_seconds": 5.0,
        "curve": [(10.0, 0.8, 0.7), (20.0, 0.93, 0.7)],
        "grouped_images": 600,
        "grouped_curve": [(5.0, 0.9, 0.94)],
        "epochs": 40,
        "flops_per_image": 1e12,
    }
    whole = {"date": "today", "machine": "a CPU", "images": 1200, "validation_images": 131}
    whole |= {"mean": 0.1854, "deviation": 0.2}
    found["machine"] = "a CPU"
    results = {"time": found, "seed": speed([12])}
    results["whole_seed"] = whole | {"curve": [(400.0, 0.9), (800.0, 0.931)]}
    page = bench_report.write_time(found, results)
    (row,) = rows_of(page, "93.0%")
    assert row[1:4] == ["13.3 min", "25 s", "32.0 times"]
    assert "measured today on a CPU, once" in page and "mean (0.185)" in page
    assert "epoch 2 is the first that has it\n(90.0%, 93.1%)" in page
    axis = Figure().subplots()
    bench_report.draw_time(axis, results)
    assert axis.lines[2].get_xydata().tolist() == [[400, 0.9], [800, 0.931]]
    # One that never has it takes longer than its epochs did; its best can be compared.
    results["whole_seed"]["curve"] = [(400.0, 0.75), (600.0, 0.92), (800.0, 0.9)]
    page = bench_report.write_time(found, results)
    (row,) = rows_of(page, "93.0%")
    assert row[1:] == ["not reached", "25 s", "over 32.0 times", "at least 30 times"]
    (row,) = rows_of(page, "92.0%")
    assert row[1:] == ["10 min", "25 s", "24.0 times", ""]
    assert "no epoch has it\n(75.0%, 92.0%, 90.0%)" in page
    # 800, 600 and 400 s against 25 s.
    assert "would be 32.0 times; if the one before had, 24.0; two before, 16.0." in page
    # 92.96% is 93.0% where it is written.
    results["whole_seed"]["curve"] = [(400.0, 0.9296)]
    assert [row[1] for row in rows_of(bench_report.write_time(found, results), "93.0%")] == ["not reached"]
    # On another machine the seed's time is reckoned from its speed on ours.
    results["whole_seed"]["machine"] = "another CPU"
    page = bench_report.write_time(found, results)
    assert rows_of(page, "93.0%")[0][1] == "16.7 min" and "That training is not repeated here" in page


def test_feedings_share_is_that_of_a_step_with_the_other_way():
    found = {
        "seconds": {"feeding": [3.0], "step": [20.0]},
        "augmentation_seconds": {"ours": [2.0], "slower": [7.0]},
    }
    assert bench_report.feeding_share(found, "ours") == 3 / 20
    assert bench_report.feeding_share(found, "slower") == 8 / 25


def test_operations_of_a_convolution_are_those_counted_by_hand():
    layer, images = nn.Conv2d(3, 8, 5, stride=2, padding=2), torch.zeros(2, 3, 16, 16)
    forward = 2 * (2 * 8 * 8 * 8) * (3 * 5 * 5)  # two for each value of the result and each weight it sees
    assert flops_of(lambda: layer(images)) == forward
    # Backward once more for the weights, and once for the input where something lies before the layer.
    network = nn.Sequential(layer, nn.Conv2d(8, 1, 1))
    calls = layer_calls(network, images, torch.float32)
    first, second = (flops_of(call) for call in calls.values())
    assert list(calls) == [
        "Conv2d/0: convolution 5 x 5, 3 to 8, on 16 x 16",
        "Conv2d/1: convolution 1 x 1, 8 to 1, on 8 x 8",
    ]
    assert first == 2 * forward
    assert second == 3 * 2 * (2 * 8 * 8) * 8


def test_sides_take_turns():
    order = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b") or time.sleep(0.01)}
    taken = interleaved(sides, CPU, rounds=3)
    assert "".join(order) == "ab" + "ab" * 3
    assert [len(seconds) for seconds in taken.values()] == [3, 3]
    assert median(taken["b"]) >= 0.01
    order.clear()
    taken = interleaved({"b": sides["b"]}, CPU, rounds=1, at_least=0.05)
    assert 4 <= len(order) <= 7  # one to warm up, one to see how long it takes, and up to five in a turn
    assert taken["b"][0] >= 0.01


def test_the_seed_trains_on_rgb_files_in_float32(tmp_path):
    shared = Bench(tmp_path, tmp_path, QUICK)
    network = shared.networks["cnn3"]
    loader = make_loader(shared.raw / "Training", shared.files, 32, 4, 0.2, 0.2)
    images, _ = next(iter(loader))
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.float32
    assert len(loader.dataset) == 16 and len(loader) == 4 and loader.num_workers == 0
    validation = make_loader(shared.raw / "Training", shared.files, 32, 5, 0.2, 0.2, training=False)
    seed = SeedTraining(seed_network(network.build()), loader, CPU, validation)
    before = [weight.clone() for weight in seed.model.parameters()]
    labels = torch.cat([labels for _, labels in validation])
    assert labels.tolist() == sorted(labels.tolist()) and len(labels) == 16
    first, again = (torch.cat([images for images, _ in validation]) for _ in range(2))
    assert torch.equal(first, again)  # no augmentation
    accuracy = seed.score()
    seed.model.eval()
    taken = torch.cat([seed.model(images).argmax(1) for images, _ in validation])
    assert accuracy == (taken == labels).float().mean()
    losses = [seed.run_epoch()[0] for _ in range(2)]
    assert all(np.isfinite(losses))
    assert not any(torch.equal(old, new) for old, new in zip(before, seed.model.parameters(), strict=True))
    assert torch.are_deterministic_algorithms_enabled()


MARKS = []


class Process:
    def look(self):
        return os.getpid(), len(MARKS)


def test_elsewhere_is_one_other_process_that_inherits_nothing():
    MARKS.append("here")
    with elsewhere(Process) as there:
        number, marks = there("look")
        assert number != os.getpid() and marks == 0
        assert there("look") == (number, 0)


def test_what_fails_elsewhere_is_raised_here():
    with pytest.raises(UserError, match="no such file"), elsewhere(fail):
        pass


def fail():
    raise UserError("no such file")


def test_the_seed_trains_on_elsewhere(tmp_path):
    shared = Bench(tmp_path, tmp_path, QUICK)
    details = shared.networks["cnn3"], shared.raw, {"train": shared.files}, (0.2, 0.2), CPU
    with elsewhere(train_as_seed, *details) as there:
        losses = [there("run_epoch")[0] for _ in range(3)]
    assert len(set(losses)) == 3 and all(np.isfinite(losses))  # one made anew each time would repeat


def test_contiguous_batches_have_the_same_values_in_the_other_format(tmp_path):
    shared = Bench(tmp_path, tmp_path, QUICK)
    batches = {}
    for kind in (Batches, Contiguous):
        training = shared.training(shared.networks["default"], kind=kind)
        batches[kind], _ = next(training.train.shuffled(training.augmentation, 0))
    assert torch.equal(batches[Batches], batches[Contiguous])
    assert batches[Batches].stride()[1:] == (1, 32, 1)
    assert batches[Contiguous].stride()[1:] == (32 * 32, 32, 1)


def test_a_ratio_is_that_of_the_medians_with_the_spread_of_its_rounds():
    assert bench_report.times([4, 6, 9], [2, 2, 2]) == "3.00 times (2.00 to 4.50)"
    assert bench_report.times([4], [2]) == "2.00 times"


def test_a_batch_size_has_the_share_of_the_product_s_rate_that_its_operations_reach():
    found = {
        "name": "cnn3",
        "size": 256,
        "precision": "bfloat16",
        "flops_per_image": 6.5e9,
        "matrix": 8192,
        "products_per_second": [7e14, 8e14, 9e14],
        "failures": {"32 compiled": "RuntimeError: no compiler"},
        "step_seconds": {"32 eager": [0.003, 0.002, 0.002], "128 eager": [0.004, 0.0052, 0.006]},
    }
    page = bench_report.write_batch_sizes(found, {})
    # 32 images in 2 ms are 16,000 a second, at 6.5 GFLOP each 104 TFLOP/s, of 800.
    assert rows_of(page, "32 ") == [["32", "eager", "2 ms", "16,000", "104", "13.0%"]]
    assert rows_of(page, "128 ") == [["128", "eager", "5.2 ms", "24,615", "160", "20.0%"]]
    assert "has\n800 TFLOP/s" in page and "Batches of 32 compiled: RuntimeError: no compiler." in page


def test_the_page_of_a_gpu_leaves_that_of_the_cpu_alone(tmp_path):
    bench_report.write({}, tmp_path, "benchmark_gpu")
    assert {file.name for file in tmp_path.iterdir()} == {"benchmark_gpu.md", "benchmark_gpu.png"}
    page = (tmp_path / "benchmark_gpu.md").read_text()
    assert "metrics/benchmark_gpu.json" in page and "(benchmark_gpu.png)" in page
    assert "benchmark.json" not in page and "benchmark.png" not in page
