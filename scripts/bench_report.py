"""The page and the plot of the training benchmark, made from its figures alone."""

from collections import defaultdict
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from braintumor.files import replacing_file
from braintumor.plots import COLOURS, save

OURS, OTHER = COLOURS.values()
THEIRS = "#9a9a9a"
REACHED, GROUPED_REACHED = 0.93, 0.94
KINDS = {
    "Conv2d": "convolutions", "GreyConv2d": "convolutions", "Linear": "linear layers", "BatchNorm2d": "norms",
    "ReLU": "activations", "MaxPool2d": "pooling", "AvgPool2d": "pooling", "feeding": "feeding",
    "optimizer": "optimizer", "averaging": "averaging",
}  # fmt: skip
OTHERS, REST = "other layers", "the rest"
# What is turned, the side with it and the side without it.
SWITCHES = [
    ("bfloat16, not float32", "as it is", "float32"),
    ("channels_last, not contiguous", "as it is", "contiguous"),
    ("optimizer foreach, not a loop", "foreach", "for-loop"),
    ("optimizer fused, not a loop", "fused", "for-loop"),
    ("CUDA graph for single launches", "as it is", "no graph"),
    ("freed memory kept, not handed back", "as it is", "memory handed back"),
    ("torch.compile, not eager", "compiled", "as it is"),
    ("averaging off, not on", "no averaging", "as it is"),
]
HEAD = """# Training benchmark

Written by `make bench` from what it measured; every sample is in
[`metrics/benchmark.json`](../metrics/benchmark.json). The two sides of a ratio ran in turn on one machine, several
rounds after one that warmed up; the figures are medians, with the least and largest ratio of a round. Only whole
trainings (*Time to an accuracy*) ran once each, one after the other. Sections ran
at different times, so compare times within one section only. One section alone:
`python -m scripts.bench_training --only seed` (or `time`, `feeding`, `arithmetic`, `switches`, `memory`; on a GPU
`batch_sizes`; and `whole_seed`, over an hour, which `make bench` leaves as it is).

![Speed, time to an accuracy, parts of a step, switches](benchmark.png)
"""


def number(value: float) -> str:
    """Write a number with three significant digits and without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a time as milliseconds, seconds or minutes."""
    if seconds < 1:
        return f"{number(1e3 * seconds)} ms"
    return f"{number(seconds / 60)} min" if seconds >= 180 else f"{number(seconds)} s"


def percent(share: float) -> str:
    """Write a share in per cent."""
    return f"{100 * share:.1f}%"


def times(above: list[float], below: list[float]) -> str:
    """Write the ratio of two medians, and the least and largest of the rounds where there are several."""
    rounds = [one / other for one, other in zip(above, below, strict=True)]
    spread = f" ({min(rounds):.2f} to {max(rounds):.2f})" if len(rounds) > 1 else ""
    return f"{ratio(above, below):.2f} times{spread}"


def ratio(above: list[float], below: list[float]) -> float:
    """Return the ratio of two medians."""
    return median(above) / median(below)


def table(head: str, *rows: tuple[str, ...]) -> str:
    """Write rows as a Markdown table under a head of names separated by ``|``."""
    line = "|".join(["---"] * len(head.split("|")))
    return "\n".join([f"| {head} |", f"|{line}|", *(f"| {' | '.join(row)} |" for row in rows)])


def first_reaching(accuracies: list[float], wanted: float) -> int | None:
    """Return the first epoch, counted from 1, with at least some accuracy."""
    return next((epoch for epoch, reached in enumerate(accuracies, start=1) if reached >= wanted), None)


# --- The sections of the page ---


def write_seed(found: dict, _: dict) -> str:
    speed = found["images_per_second"]
    theirs, ours, loading, keeping = (
        number(median(speed[side])) for side in ("seed", "ours", "seed_feeding", "seed_keeping_memory")
    )
    what = f"training cnn3, {found['size']} pixels square, batches of {found['batch_size']}"
    figures = table(
        "images a second | the seed's way | ours | gain | target",
        (what, theirs, ours, times(speed["ours"], speed["seed"]), "at least 3 times"),
    )
    return f"""## Against the seed's own procedure

{figures}

The seed's way reads {found["images"]} {"images of the dataset" if found["dataset"] else "made-up images"}, ours
trains on as many of them as its steps need. The seed's way: torchvision's ImageFolder in the process that trains,
each image read, resized and augmented by Pillow at each use (which alone gives {loading} images a second),
float32, contiguous, Adam. Ours: the same network,
optimizer, size and strengths of augmentation on squares that were read once, {found["precision"]}, channels_last,
averaged weights, freed memory kept for the next step where the C library is glibc (`braintumor/device.py`). The
seed's way does not keep it, and runs in a process of its own. If it did, it would have {keeping} images a
second, and the gain would be {times(speed["ours"], speed["seed_keeping_memory"])}."""


def trained_whole(results: dict) -> bool:
    """Whether the seed's way was trained to its end on the machine on which ours was."""
    ours, theirs = (results.get(section, {}).get("machine") for section in ("time", "whole_seed"))
    return ours is not None and ours == theirs


def seed_curve(results: dict) -> list[tuple[float, float]]:
    """Return seconds and validation accuracy of the seed's way after each epoch.

    Where it was not trained as a whole on the machine that ours was, the one after the last epoch, from the speed
    and the seed's own report.
    """
    if trained_whole(results):
        return results["whole_seed"]["curve"]
    found = results["time"]
    speed = median(results["seed"]["images_per_second"]["seed"])
    return [(found["seed_epochs"] * found["seed_images"] / speed, REACHED)]


def time_to(curve: list, wanted: float) -> float | None:
    """Return the seconds of the first epoch with at least some accuracy."""
    return next((seconds for seconds, reached, *_ in curve if reached >= wanted), None)


def write_time(found: dict, results: dict) -> str:
    curve, reading, theirs = found["curve"], found["decoding_seconds"], seed_curve(results)
    wanted, best = [REACHED], max(accuracy for _, accuracy in theirs)
    if percent(min(best, REACHED)) != percent(REACHED):
        wanted.append(best)
    rows = [compare_times(accuracy, theirs, curve, reading) for accuracy in wanted]
    reached = first_reaching([accuracy for _, accuracy, _ in curve], REACHED)
    notes = write_earlier(theirs, curve, reading) + write_keeping(theirs, curve, reading, results)
    how = f"epoch {reached} has it" if reached else f"the best has {percent(max(a for _, a, _ in curve))}"
    return f"""## Time to an accuracy

{table("validation accuracy, seed's protocol | the seed's way | ours | gain | target", *rows)}

The seed's protocol validates on half of `Testing`, most of it copies of training images. The seed reports 93%
after {found["seed_epochs"]} epochs. {write_whole_seed(found, results)}
Ours is the default recipe of {found["epochs"]} epochs really trained, up to the first that has 93% ({how}), the
time with validation and {duration(reading)} for reading the files.{notes}

{write_grouped(found)}"""


def write_earlier(theirs: list, ours: list, reading: float) -> str:
    """Tell what the gain would be, had the seed's way the accuracy after one of its last epochs."""
    seconds = time_to(ours, REACHED)
    if seconds is None or time_to(theirs, REACHED) or len(theirs) < 3:
        return ""
    gains = [theirs[-epochs][0] / (seconds + reading) for epochs in (1, 2, 3)]
    return f"""
Each side is one training, and 655 images leave ± 2 points. If the seed's last epoch above had reached 93%, the
gain would be {gains[0]:.1f} times; if the one before had, {gains[1]:.1f}; two before, {gains[2]:.1f}. With its
settings in our loop a training has it within ten ([study.md](study.md#the-seeds-own-four))."""


def write_keeping(theirs: list, ours: list, reading: float, results: dict) -> str:
    """Tell what the gain would be, did the seed's way keep freed memory as ours does."""
    their_seconds, our_seconds = time_to(theirs, REACHED), time_to(ours, REACHED)
    if None in (their_seconds, our_seconds) or results["seed"]["machine"] != results["time"]["machine"]:
        return ""
    speed = results["seed"]["images_per_second"]
    faster = ratio(speed["seed_keeping_memory"], speed["seed"])
    gain = their_seconds / faster / (our_seconds + reading)
    return f"""

If the seed's way kept freed memory, too, it would train {faster:.2f} times as fast, by the section above, and the
gain would be about {gain:.0f} times."""


def compare_times(wanted: float, theirs: list, ours: list, reading: float) -> tuple[str, ...]:
    """Return a row of both sides' times to an accuracy; `reading` is what comes before ours."""
    their_seconds, our_seconds, gain = time_to(theirs, wanted), time_to(ours, wanted), ""
    if our_seconds is not None:
        our_seconds += reading
        # A training that never has it takes longer than all of its epochs.
        least = their_seconds or theirs[-1][0]
        gain = f"{'' if their_seconds else 'over '}{least / our_seconds:.1f} times"
    sides = (duration(seconds) if seconds else "not reached" for seconds in (their_seconds, our_seconds))
    return percent(wanted), *sides, gain, "at least 30 times" if wanted == REACHED else ""


def write_whole_seed(found: dict, results: dict) -> str:
    """Tell where the seed's time comes from."""
    if not trained_whole(results):
        return f"""That training is not repeated here (`--only whole_seed` does), its time is that of as many times
{found["seed_images"]:,} images at the speed above, without validation."""
    whole = results["whole_seed"]
    seconds, accuracies = zip(*whole["curve"], strict=True)
    reached = first_reaching(accuracies, REACHED)
    ending = f"epoch {reached} is the first that has it" if reached else "no epoch has it"
    curve = ", ".join(percent(accuracy) for accuracy in accuracies)
    epoch, when = duration(seconds[-1] / len(seconds)), measured("whole_seed", whole)
    return f"""Its way was trained here as a whole (`--only whole_seed`; measured {when}):
{whole["images"]:,} images, normalised by their mean ({whole["mean"]:.3f}) and deviation
({whole["deviation"]:.3f}), and validation on {whole["validation_images"]}, {epoch} an epoch; {ending}
({curve})."""


def write_grouped(found: dict) -> str:
    """Tell time and arithmetic of the committed recipe where it validates and tests on other people."""
    images, flops = found["grouped_images"], found["flops_per_image"]
    seconds, validation, distinct = zip(*found["grouped_curve"], strict=True)
    wanted = percent(GROUPED_REACHED)
    rows = [
        (what, str(epochs), duration(seconds[epochs - 1]), f"{number(epochs * images * flops / 1e15)} PFLOP")
        if epochs
        else (what, "not reached", "", "")
        for what, epochs in (
            (f"to {wanted} of the distinct test images", first_reaching(distinct, GROUPED_REACHED)),
            (f"to {wanted} of the validation images", first_reaching(validation, GROUPED_REACHED)),
            ("all", len(seconds)),
        )
    ]
    return f"""{table("first fold by patient | epochs | time | arithmetic", *rows)}

The committed recipe, its averaged weights scored after each epoch; nothing is chosen on the test images, and
scoring them takes none of the time. After the last epoch {percent(distinct[-1])} of the distinct test images and
{percent(validation[-1])} of the validation images, which show yet other people, are right (the pipeline keeps
the best epoch by validation). An epoch trains on {images:,} images in full batches, and an image takes
{number(flops / 1e9)} GFLOP forward and backward, counted by torch's FlopCounterMode. This is the first of five
folds; the mean of all is in [training.md](training.md#what-it-reaches-on-test-images)."""


def feeding_share(found: dict, way: str) -> float:
    """Return feeding's share of a step with another way to augment in the place of ours."""
    seconds, ways = found["seconds"], found["augmentation_seconds"]
    more = median(ways[way]) - median(ways["ours"])
    return (median(seconds["feeding"]) + more) / (median(seconds["step"]) + more)


def write_feeding(found: dict, _: dict) -> str:
    seconds, ways = found["seconds"], found["augmentation_seconds"]
    feed, step = (duration(median(seconds[side])) for side in ("feeding", "step"))
    share = percent(ratio(seconds["feeding"], seconds["step"]))
    what = f"default network, {found['size']} pixels square, batches of {found['batch_size']}"
    compared = [
        (way, duration(median(taken)), times(taken, ways["ours"]), percent(feeding_share(found, way)))
        for way, taken in ways.items()
    ]
    return f"""## Feeding

{table("a batch | feeding | whole step | share | target", (what, feed, step, share, "at most 10%"))}

Feeding is all before the network: gathering the images, float, augmentation, normalisation, channels_last.

{table("augmenting a batch | time | as much as ours | feeding's share of a step with it", *compared)}

Each makes the same changes: flip, shift, rotation, zoom, brightness, contrast; ours warps once for the first four.
torchvision's v2 changes all images of a batch alike, so that only image by image it does what ours does. A library
would be taken if feeding stayed within 10% of a step with it."""


def peak_of(found: dict, precision: str) -> float:
    """Return the best rate of matrix products, in operations a second."""
    return max(median(rates) for rates in found["products_per_second"][precision].values())


def parts_of(network: dict) -> dict[str, tuple[float, float]]:
    """Return operations and seconds of each kind of part of a step; the rest is what all parts leave of it."""
    parts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, part in network["parts"].items():
        kind = KINDS.get(name.split("/")[0], OTHERS)
        parts[kind] = parts[kind][0] + part["flops"], parts[kind][1] + median(part["seconds"])
    whole = median(network["seconds"][f"step {network['precision']}"])
    parts[REST] = 0.0, whole - sum(seconds for _, seconds in parts.values())
    return dict(parts)


def write_arithmetic(found: dict, _: dict) -> str:
    rates, networks = found["products_per_second"], found["networks"].values()
    products = [(name, *(number(median(own) / 1e9) for own in sizes.values())) for name, sizes in rates.items()]
    wholes = []
    for network in networks:
        for name, taken in network["seconds"].items():
            what, precision, *_ = name.split()
            flops, seconds = network["flops"][what], median(taken)
            share = percent(flops / seconds / peak_of(found, precision))
            wholes.append((f"{network['name']} {name}", number(flops / 1e9), duration(seconds), share))
    tables = "\n\n".join(write_layers(network, peak_of(found, network["precision"])) for network in networks)
    return f"""## Arithmetic

{table(" | ".join(["matrix products, GFLOP/s", *next(iter(rates.values()))]), *products)}

The best rate of `torch.mm` stands for what the machine can do in a precision; a convolution may beat it.

{table("network and pass | GFLOP | time | share of the best rate", *wholes)}

A step is feeding, forward and backward pass, optimizer and averaging; what is counted of it are convolutions and
linear layers.

{tables}"""


def write_layers(network: dict, peak: float) -> str:
    """Write a network's table by layer, and where the time goes that its operations do not need."""
    whole, parts = median(network["seconds"][f"step {network['precision']}"]), parts_of(network)
    entries = [
        (name.split("/", 1)[1], part["flops"], median(part["seconds"]))
        for name, part in network["parts"].items()
        if part["flops"]
    ]
    entries += [(kind, *own) for kind, own in parts.items() if not own[0]]
    rows = []
    for name, flops, seconds in entries:
        counted, reached = (number(flops / 1e9), percent(flops / seconds / peak)) if flops else ("", "")
        rows.append((name, counted, number(1e3 * seconds), reached, percent(seconds / whole)))
    needed = network["flops"]["step"] / peak
    lost = {kind: (seconds - flops / peak) / (whole - needed) for kind, (flops, seconds) in parts.items()}
    main = [kind for kind in sorted(lost, key=lost.get, reverse=True) if abs(lost[kind]) >= 0.01]
    shares = ", ".join(f"{kind} {percent(lost[kind])}" for kind in main)
    return f"""### {network["name"]}, {network["size"]} pixels square, batches of {network["batch_size"]}

{table("forward and backward | GFLOP | ms | share of the best rate | share of the step", *rows)}

At the best rate a step's operations would take {duration(needed)}; it takes {duration(whole)} in
{network["precision"]}. The time between goes to {shares}. (Each part was timed alone. *The rest* is the step
without them: what lies between the layers, such as sums at shortcuts, and the loss; it is below 0 where parts take
longer alone.)"""


def turned(found: dict) -> list[tuple[str, str, str]]:
    """Return the switches, without that of the precision where the training is in float32 anyway, or of a GPU."""
    network = next(iter(found["networks"].values()))
    return [
        (label, on, off)
        for label, on, off in SWITCHES
        if network["precision"] != off and off in network["images_per_second"]
    ]


def write_switches(found: dict, _: dict) -> str:
    networks = list(found["networks"].values())
    rows = []
    for label, on, off in turned(found):
        row = [label]
        for speed in (network["images_per_second"] for network in networks):
            values = [number(median(speed[side])) for side in (off, on) if side in speed]
            row += [" to ".join(values), times(speed[on], speed[off])] if on in speed else ["not measured", ""]
        rows.append(tuple(row))
    heads = [head for network in networks for head in (f"{network['name']}, images a second", "gain")]
    optimizers = " and ".join(f"{network['optimizer']} for {network['name']}" for network in networks)
    compiling = "; ".join(
        f"{network['name']} {network['compile_failure'] or duration(network['first_compiled_turn_seconds'])}"
        for network in networks
    )
    steps = "a CUDA graph a step" if "no graph" in networks[0]["images_per_second"] else "eager"
    return f"""## Switches

{table(" | ".join(["switch", *heads]), *rows)}

One switch at a time is turned in the training as it is: {networks[0]["precision"]}, channels_last, {steps},
averaged weights, fused {optimizers}, freed memory kept for the next step (glibc). torch.compile with its first
turn: {compiling}. The optimizer is fused because that is one launch on a GPU; of Muon
that is SGD's part, and its orthogonal steps come on top."""


def write_batch_sizes(found: dict, _: dict) -> str:
    flops, peak = found["flops_per_image"], median(found["products_per_second"])
    rows = []
    for name, seconds in found["step_seconds"].items():
        size, way = name.split()
        reached = flops * int(size) / median(seconds)
        speed = number(int(size) / median(seconds))
        rows.append((size, way, duration(median(seconds)), speed, number(reached / 1e12), percent(reached / peak)))
    failed = [f"Batches of {name}: {failure}.\n" for name, failure in found["failures"].items() if failure]
    head = "batch | step | time | images a second | TFLOP/s | share of the matrix product's rate"
    return f"""## Larger batches

{table(head, *rows)}

{found["name"]} at {found["size"]} pixels square, trained in {found["precision"]}: feeding, {number(flops / 1e9)}
GFLOP an image of convolutions and linear layers forward and backward, optimizer and averaging; on a GPU all but
the feeding is one CUDA graph. What an epoch ends with is shared out among its steps. `torch.mm` of
{found["matrix"]} x {found["matrix"]} in this precision, in turn with them, has
{number(peak / 1e12)} TFLOP/s. {"".join(failed)}"""


def write_memory(found: dict, _: dict) -> str:
    name = f"{'the dataset' if found['dataset'] else 'an array'}, {found['rows']:,} images"
    peaks = {what: own["peak_gb"] for what, own in found["arrays"].items()}
    rows = [
        (what, *(f"{own[key]:.2f} GB" for key in ("array_gb", "peak_gb")), "at most 2 GB")
        for what, own in zip((name, "ten times as many"), found["arrays"].values(), strict=True)
    ]
    return f"""## Memory

{table("training on | array on disk | peak memory | target", *rows)}

Ten times the images take {peaks["ten times"] / peaks["once"]:.2f} times the memory: the peak resident memory of a
process that reads every image and then trains the default network on some, with those pages of the file that are
mapped into it. An array over the limit (half a GiB; half of a GPU's memory) stays on disk and is read batch by
batch. The longer array is of black images."""


WRITERS = {
    "seed": write_seed,
    "time": write_time,
    "feeding": write_feeding,
    "arithmetic": write_arithmetic,
    "switches": write_switches,
    "batch_sizes": write_batch_sizes,
    "memory": write_memory,
}


# --- The plot ---


def draw_seed(axis: Axes, results: dict) -> None:
    speed = [median(results["seed"]["images_per_second"][side]) for side in ("seed", "ours")]
    drawn = axis.bar(["the seed's way", "ours"], speed, 0.5, color=[THEIRS, OURS])
    axis.bar_label(drawn, [number(value) for value in speed])
    axis.set(title="Training cnn3", ylabel="images a second")


def draw_time(axis: Axes, results: dict) -> None:
    axis.axhline(REACHED, color="#cccccc", linewidth=0.8)
    seconds, accuracies, _ = zip(*results["time"]["curve"], strict=True)
    axis.plot(seconds, accuracies, "o-", color=OURS, markersize=3, label="ours")
    axis.plot(*zip(*seed_curve(results), strict=True), "^-", color="#555555", markersize=3, label="the seed's way")
    axis.set(title="Validation in the seed's protocol", xlabel="seconds", ylabel="accuracy", xscale="log")
    # The usual labels of a log axis are math, which our pictures do not parse.
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter("")
    axis.legend(frameon=False, loc="lower right")


def draw_parts(axis: Axes, results: dict) -> None:
    networks = list(results["arithmetic"]["networks"].values())
    # A rest below zero has no length.
    parts = [{kind: max(0.0, seconds) for kind, (_, seconds) in parts_of(network).items()} for network in networks]
    left = [0.0] * len(networks)
    for place, kind in enumerate(dict.fromkeys([*KINDS.values(), OTHERS, REST])):
        shares = [100 * own.get(kind, 0.0) / sum(own.values()) for own in parts]
        axis.barh([network["name"] for network in networks], shares, 0.5, left, color=f"C{place % 10}", label=kind)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axis.set(title="Where a step's time goes", xlabel="% of the step", ylim=(-0.5, len(networks) + 0.3))
    axis.legend(frameon=False, ncols=3, fontsize=8, loc="upper left")


def draw_switches(axis: Axes, results: dict) -> None:
    networks, rows = results["switches"]["networks"].values(), turned(results["switches"])
    for place, (network, colour) in enumerate(zip(networks, (OURS, OTHER), strict=True)):
        speed = network["images_per_second"]
        gains = [ratio(speed[on], speed[off]) if on in speed else 0.0 for _, on, off in rows]
        heights = [row + 0.4 * place - 0.2 for row in range(len(gains))]
        drawn = axis.barh(heights, gains, 0.36, color=colour, label=network["name"])
        axis.bar_label(drawn, [f"{value:.2f}" if value else "" for value in gains], padding=3, fontsize=8)
    axis.axvline(1, color="#555555", linewidth=0.8)
    axis.set(title="Switches", xlabel="times as fast", yticks=range(len(rows)))
    axis.set_yticklabels([label for label, _, _ in rows])
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="lower right")


PANELS = {"seed": draw_seed, "time": draw_time, "arithmetic": draw_parts, "switches": draw_switches}


def measured(section: str, found: dict) -> str:
    """Say when and on what a section was measured; the sections that train as a whole do it once."""
    often = "once" if section in ("time", "memory", "whole_seed") else f"rounds: {found['rounds']}"
    return f"{found['date']} on {found['machine']}, {often}"


def write(results: dict, folder: Path, name: str = "benchmark") -> None:
    """Write a page and a plot of one name into a folder, with the sections that were measured."""
    parts = [
        f"{writer(results[section], results)}\n\n*Measured {measured(section, results[section])}.*\n"
        for section, writer in WRITERS.items()
        if section in results
    ]
    with replacing_file(folder / f"{name}.md") as beside:
        head = HEAD.replace("benchmark.json", f"{name}.json").replace("benchmark.png", f"{name}.png")
        beside.write_text("\n".join([head, *parts]), encoding="utf-8")
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axis, (section, draw) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        if section in results:
            draw(axis, results)
        else:
            axis.axis("off")
    save(figure, folder / f"{name}.png")
