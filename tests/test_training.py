import errno
import fcntl
import math
import os
import platform
import shutil
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import braintumor.training
from braintumor.batches import Augmentation, Batches
from braintumor.checkpoint import Checkpoint, claim, fingerprint, release
from braintumor.device import choose_device, choose_precision
from braintumor.distributed import Ranks
from braintumor.errors import UserError
from braintumor.graphs import GraphedStep
from braintumor.models import Architecture
from braintumor.training import (
    MUON_SHARE,
    Diverged,
    Recipe,
    Stopped,
    Training,
    WeightAverage,
    epoch_scores,
    learning_rate,
    make_optimizer,
    newest_weight,
    predict,
    set_rate,
)
from tests.conftest import PROJECT, full_disk

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=6, optimizer="sgd", lr=0.05, schedule="cosine", warmup=0.1, weight_decay=5e-4, label_smoothing=0.1,
    averaging=0.9, patience=None, seed=3, accumulation=1, body_lr=1.0, frozen_epochs=0,
)  # fmt: skip
AUGMENTATION = Augmentation(flip=0.5, shift=0.05, rotation=5, scale=0, brightness=0.1, contrast=0)


def make_sets(n=320, size=32, device=CPU):
    """Noise with a bright square in the upper or lower half, which is the class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (n, size, size), np.uint8)
    labels = np.arange(n) % 2
    for image, label in zip(images, labels, strict=True):
        top = 4 + 16 * label
        image[top : top + 8, 12:20] += 150
    rows = np.arange(n)
    return [
        Batches(images, part, labels[part], 16, 0.2, 0.2, device)
        for part in (rows[: n * 3 // 4], rows[n * 3 // 4 :])
    ]


def train(recipe=RECIPE, precision=torch.float32, epochs=None, state=None, device="cpu", graphs=None):
    device = choose_device(device, 1)
    torch.manual_seed(recipe.seed)
    model = Architecture.named("resnet", [8, 16], None, 0.1, 32, 2).build()
    training = Training(model, *make_sets(device=device), AUGMENTATION, recipe, precision)
    if graphs is not None:
        training.graphs = graphs
    if state:
        training.restore(state)
    while not training.done and len(training.epochs) != epochs:
        training.run_epoch()
    return training


def stop_after(training, steps):
    """Ask a training to stop amid its next epoch."""
    shuffled = training.train.shuffled

    def stopping(*arguments):
        for number, batch in enumerate(shuffled(*arguments)):
            training.stopping = number == steps
            yield batch

    training.train.shuffled = stopping


def replace(**changes):
    return Recipe(**RECIPE.__dict__ | changes)


@pytest.mark.parametrize(
    ("optimizer", "lr", "precision"),
    [
        ("sgd", 0.1, torch.float32),
        ("adamw", 0.01, torch.float32),
        ("muon", 0.1, torch.float32),
        ("sgd", 0.1, torch.bfloat16),
    ],
)
def test_a_network_learns_what_there_is_to_learn(optimizer, lr, precision):
    training = train(replace(optimizer=optimizer, lr=lr, epochs=8), precision)
    assert training.best.validation.accuracy == 1.0


def test_equal_seeds_give_equal_weights_and_scores_and_another_seed_others():
    first, again, other = train(), train(), train(replace(seed=4))
    assert first.epochs == again.epochs
    for name, value in first.best_weights.items():
        assert torch.equal(value, again.best_weights[name]), name
    assert not torch.equal(first.best_weights["head.weight"], other.best_weights["head.weight"])


def test_the_best_weights_are_those_that_scored_best():
    training = train(replace(epochs=4, lr=0.02))
    best = training.best
    assert best.validation.accuracy == max(epoch.validation.accuracy for epoch in training.epochs)
    training.model.load_state_dict(training.best_weights)
    logits, labels = predict(training.model, training.validation), training.validation.labels
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(best.validation.accuracy)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(best.validation.loss, abs=1e-5)


def test_patience_stops_after_so_many_epochs_without_a_better_one():
    # At a rate of nothing no epoch is better than the first but for batch norm's averages.
    training = train(replace(lr=1e-12, epochs=60, patience=3))
    assert len(training.epochs) == training.best.number + 3 < 60


def test_averaged_weights_follow_at_the_decay():
    for step, expected in ((0, 2.0), (10, 1.5), (10**6, 1.1)):  # at the start as of 10 earlier steps
        newest = nn.BatchNorm1d(1)
        average = WeightAverage(newest)
        nn.init.constant_(newest.weight, 2.0)
        newest.running_var.fill_(2.0)
        newest.num_batches_tracked.fill_(7)
        average.weight.fill_(newest_weight(0.9, step))
        average.update()
        averaged = average.model
        assert averaged.weight.item() == averaged.running_var.item() == pytest.approx(expected)
        assert averaged.num_batches_tracked == 7
    newest = train(replace(epochs=2, averaging=0.0))
    for name, value in newest.model.state_dict().items():
        assert torch.equal(value, newest.averaged.state_dict()[name]), name


def test_a_batch_in_parts_gives_the_gradient_of_the_whole():
    # Without batch norm and dropout, the parts' gradients add up to the batch's.
    def weights(accumulation):
        torch.manual_seed(0)
        model = Architecture.named("cnn", [4, 8], 16, 0.0, 32, 2).build()
        training = Training(
            model, *make_sets(), AUGMENTATION, replace(accumulation=accumulation, epochs=1), torch.float32
        )
        return training.run_epoch(), torch.cat([weight.detach().ravel() for weight in model.parameters()])

    (one, whole), (four, parts) = weights(1), weights(4)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert one.train.loss == pytest.approx(four.train.loss, abs=1e-6)


def test_a_batch_that_cannot_be_dealt_out_is_an_error():
    with pytest.raises(
        UserError, match=r"train\.batch_size: 16 of 240 images cannot be dealt out to 1 proc.* 3 equal"
    ):
        train(replace(accumulation=3))


def test_the_body_waits_for_the_head_and_then_trains_at_its_share_of_the_rate():
    torch.manual_seed(0)
    model = Architecture.named("resnet", [8, 16], None, 0.0, 32, 2).build()
    before = {name: value.clone() for name, value in model.named_parameters()}
    training = Training(
        model, *make_sets(), AUGMENTATION, replace(epochs=3, frozen_epochs=1, body_lr=0.25), torch.float32
    )
    training.run_epoch()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    training.run_epoch()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(before)
    rates = {group["share"]: group["lr"] for group in training.optimizer.param_groups}
    assert rates[0.25] == pytest.approx(0.25 * rates[1.0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_network_learns_what_the_plain_one_does():
    def curve(compiled):
        torch.manual_seed(0)
        model = Architecture.named("resnet", [8], None, 0.0, 32, 2).build()
        recipe = replace(epochs=2, frozen_epochs=1)
        training = Training(model, *make_sets(), AUGMENTATION, recipe, torch.float32, compiled=compiled)
        losses = [training.run_epoch().train.loss for _ in range(2)]
        assert all(not name.startswith("_orig_mod") for name in training.best_weights)
        return losses

    assert curve(True) == pytest.approx(curve(False), abs=1e-3)


def test_a_restored_training_sets_its_rates_where_it_did_before():
    # A graph reads them from there.
    training = train(epochs=1)
    rates = [torch.zeros(()) for _ in training.optimizer.param_groups]
    for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    training.restore(training.state())
    assert all(group["lr"] is rate for group, rate in zip(training.optimizer.param_groups, rates, strict=True))
    set_rate(training.optimizer, 0.25)
    assert all(rate == 0.25 for rate in rates)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_anew_at_each_step_and_what_the_plain_step_draws():
    ones, labels = torch.ones(64, device="cuda"), torch.zeros(1, device="cuda")

    def step(images, target):
        return (nn.functional.dropout(images),)

    torch.manual_seed(1)
    plain = [step(ones, labels)[0] for _ in range(2)]
    torch.manual_seed(1)
    graphed = GraphedStep(step, ones, labels, lambda: [])
    drawn = [graphed(ones, labels)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    assert all(torch.equal(one, other) for one, other in zip(plain, drawn, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_step_as_a_graph_trains_as_the_plain_one_does_and_goes_on_from_any_step(optimizer, tmp_path):
    recipe = replace(optimizer=optimizer, lr=0.01, frozen_epochs=1, epochs=4)
    plain, graphed = (train(recipe, device="cuda", graphs=graphs) for graphs in (False, True))
    losses = [[epoch.train.loss for epoch in training.epochs] for training in (plain, graphed)]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
    half = train(recipe, device="cuda", epochs=2)
    stop_after(half, 6)
    with pytest.raises(Stopped):
        half.run_epoch()
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save(half.state())
    again = train(recipe, device="cuda", state=checkpoint.load())
    assert again.epochs == graphed.epochs
    for name, value in graphed.best_weights.items():
        assert torch.equal(value.cpu(), again.best_weights[name].cpu()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_no_step_waits_for_the_gpu(optimizer):
    training = train(replace(optimizer=optimizer, epochs=2), device="cuda", epochs=1)
    training._prepare(frozen=False)
    batches, steps = training.train.shuffled(AUGMENTATION, 0), training.train.steps
    torch.cuda.set_sync_debug_mode("error")
    try:
        training._train(batches, [0.01] * steps, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_body_may_join_late_at_the_full_rate(optimizer):
    recipe = replace(epochs=3, frozen_epochs=2, optimizer=optimizer)
    frozen, joined = train(recipe, epochs=2), train(recipe)
    shares = {1.0, MUON_SHARE} if optimizer == "muon" else {1.0}
    assert {group["share"] for group in joined.optimizer.param_groups} == shares
    untrained = train(recipe, epochs=0)
    for name, value in frozen.model.named_parameters():
        assert torch.equal(value, untrained.model.get_parameter(name)) != name.startswith("head"), name
        assert not torch.equal(value, joined.model.get_parameter(name)), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_training_goes_on_from_any_epoch_as_if_it_had_never_stopped(optimizer, tmp_path):
    recipe = replace(optimizer=optimizer, lr=0.01, epochs=4)
    whole = train(recipe)
    for stop in (1, 3):
        checkpoint = Checkpoint(tmp_path / optimizer, f"key{stop}")
        assert checkpoint.load() is None
        half = train(recipe, epochs=stop)
        checkpoint.save(half.state())
        again = train(recipe, state=checkpoint.load())
        assert again.epochs == whole.epochs
        for name, value in whole.best_weights.items():
            assert torch.equal(value, again.best_weights[name]), name
        checkpoint.delete()
    assert not (tmp_path / optimizer).exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize(("epochs", "steps"), [(0, 4), (2, 11), (2, 0)])
def test_a_training_goes_on_amid_an_epoch_as_if_it_had_never_stopped(optimizer, epochs, steps, tmp_path):
    recipe = replace(optimizer=optimizer, lr=0.01, epochs=4)
    whole = train(recipe)
    half, checkpoint = train(recipe, epochs=epochs), Checkpoint(tmp_path, "key")
    stop_after(half, steps)
    with pytest.raises(Stopped):
        half.run_epoch()
    assert (len(half.epochs), half.begun) == (epochs, steps)
    checkpoint.save(half.state())
    unmoved = train(recipe, epochs=epochs, state=checkpoint.load())
    checkpoint.save(unmoved.state())
    again = train(recipe, state=checkpoint.load())
    del half.train.shuffled  # stop_after's
    half.stopping = False
    while not half.done:
        half.run_epoch()
    for training in (again, half):
        assert training.epochs == whole.epochs
        for name, value in whole.best_weights.items():
            assert torch.equal(value, training.best_weights[name]), name


def test_where_an_answer_takes_steps_a_training_stops_at_the_next_one():
    class Many(Ranks):
        steps_to_answer = 4

        def greatest(self, number):
            value = number()  # when it is asked, as where there are several
            return lambda: value

    half = train(epochs=0)
    half.ranks = Many()
    shuffled = half.train.shuffled

    def told_amid(*arguments):
        for number, batch in enumerate(shuffled(*arguments)):
            half.stopping = 15 if number >= 5 else 0
            yield batch

    half.train.shuffled = told_amid
    with pytest.raises(Stopped):
        half.run_epoch()
    assert (half.begun, half.stopping) == (12, 15)  # asked before the ninth step, answered before the thirteenth
    again, whole = train(state=half.state()), train()
    assert again.epochs == whole.epochs
    for name, value in whole.best_weights.items():
        assert torch.equal(value, again.best_weights[name]), name


@pytest.mark.parametrize(("processes", "steps"), [(1, 1), (2, 1), (8, 1), (9, 2), (15, 2), (16, 2), (64, 8)])
def test_the_more_processes_ask_each_other_the_more_steps_an_answer_may_take(processes, steps):
    assert Ranks(0, processes).steps_to_answer == steps


def test_an_epoch_that_one_process_began_is_dealt_out_to_two():
    half = train(epochs=1)
    stop_after(half, 3)
    with pytest.raises(Stopped):
        half.run_epoch()
    state, shares = half.state(), []
    for rank in (0, 1):
        model = Architecture.named("resnet", [8, 16], None, 0.1, 32, 2).build()
        training = Training(model, *make_sets(), AUGMENTATION, RECIPE, torch.float32, Ranks(rank, 2))
        training.restore(state)
        assert training.begun == 3
        shares.append(torch.stack([*training._begun[1], *training._begun[2]], dim=1))
    assert [share.shape for share in shares] == [(24, 2), (24, 2)]  # 3 batches of 16
    whole = torch.stack([state["begun"]["predictions"], state["begun"]["labels"]], dim=1)
    assert sorted(torch.cat(shares).tolist()) == sorted(whole.tolist())


def test_more_processes_than_images_to_validate_are_an_error():
    training, validation = make_sets()
    few = Batches(validation.images, validation.rows[:1], np.zeros(1), 16, 0.2, 0.2, CPU)
    model = Architecture.named("resnet", [8, 16], None, 0.1, 32, 2).build()
    with pytest.raises(UserError, match=r"2 processes cannot share 1 validation images.*split\.validation_folds"):
        Training(model, training, few, AUGMENTATION, RECIPE, torch.float32, Ranks(0, 2))


def test_the_key_of_a_state_is_that_of_files_and_values(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text(file.name)
    keys = {fingerprint(files, 1), fingerprint(files, 2), fingerprint(files[::-1], 1), fingerprint(files[:1], 1)}
    assert len(keys) == 4
    assert fingerprint(files, 1) in keys
    files[1].write_text("c")
    assert fingerprint(files, 1) not in keys


def test_two_trainings_in_one_folder_are_refused_until_one_has_ended(tmp_path):
    folder = tmp_path / "unfinished"
    first, state = claim(folder), Checkpoint(folder, "key")
    with pytest.raises(UserError, match=rf"unfinished/lock: process {os.getpid()} on .* trains here"):
        claim(folder)
    release(first)
    state.delete()
    assert not list(tmp_path.iterdir())
    release(claim(folder))


def test_where_a_filesystem_has_no_locks_a_training_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    release(claim(tmp_path / "unfinished"))
    assert "lock: cannot be locked (No locks available): see that no other" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-200], lambda _: b"no state", lambda _: b".", lambda _: b""]
)
def test_a_damaged_state_is_an_error(damage, tmp_path):
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save({"a": torch.ones(3)})
    checkpoint.file.write_bytes(damage(checkpoint.file.read_bytes()))
    with pytest.raises(UserError, match=r"cannot be read.*delete it"):
        checkpoint.load()


def test_the_rate_warms_up_and_falls_along_a_cosine():
    rates = [learning_rate(step, 100, 0.4, "cosine", 0.2) for step in range(100)]
    assert np.diff(rates[:21]) == pytest.approx(rates[0])  # even steps up from 0 before the first
    assert rates[20] == 0.4 == max(rates)
    assert rates[60] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert 0 < rates[99] < 0.001
    assert [learning_rate(step, 10, 0.3, "constant", 0) for step in range(10)] == [0.3] * 10


def test_the_rate_of_each_epoch_is_told():
    training = train(replace(epochs=3))
    steps = training.train.steps
    expected = [learning_rate(steps * n - 1, 3 * steps, 0.05, "cosine", 0.1) for n in (1, 2, 3)]
    assert [epoch.lr for epoch in training.epochs] == expected


def test_a_training_that_diverges_is_an_error():
    with pytest.raises(
        Diverged, match=r"the loss is (nan|inf) at epoch 1, batch \d+ of 15, .*e\+.*lower train\.lr"
    ):
        train(replace(lr=1e12))


def test_a_loss_that_is_no_number_ends_the_epoch_at_once(monkeypatch):
    step, steps = braintumor.training.train_step, []
    monkeypatch.setattr(braintumor.training, "train_step", lambda *given: steps.append(1) or step(*given))
    with pytest.raises(Diverged) as caught:
        train(replace(lr=1e12))
    assert f"batch {len(steps)} of 15" in str(caught.value) and len(steps) < 15


def test_a_training_that_diverges_late_keeps_its_best_weights():
    whole = train(replace(epochs=2))
    training = train(replace(epochs=3), epochs=2)
    best = {name: value.clone() for name, value in training.best_weights.items()}
    training.model.head.weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="the loss is nan at epoch 3, batch 1 of 15"):
        training.run_epoch()
    assert len(training.epochs) == len(whole.epochs) == 2
    for name, value in best.items():
        assert torch.equal(value, training.best_weights[name])
        assert value.isfinite().all()


def test_one_image_of_one_place_cannot_be_normalised():
    model = Architecture.named("resnet", [8, 16, 32, 64], None, 0.0, 32, 2).build()  # 32 pixels, halved five times
    training = Training(model, *make_sets(), AUGMENTATION, replace(accumulation=16), torch.float32)
    with pytest.raises(UserError, match=r"^train\.batch_size: one image at a time, .* raise preprocess\.size$"):
        training.run_epoch()


def test_a_disk_that_is_full_leaves_the_last_state_and_is_an_error_of_the_file(tmp_path):
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.save({"value": torch.ones(10)})
    for left in (0, 1000, 100_000):
        with full_disk(left), pytest.raises(OSError) as caught:
            checkpoint.save({"value": torch.zeros(100_000)})
        assert caught.value.filename == str(checkpoint.file) and caught.value.strerror
    assert torch.equal(checkpoint.load()["value"], torch.ones(10))
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.file.name]


def test_norms_and_biases_do_not_decay():
    layers = {"conv": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "head": nn.Linear(2, 2)}
    model = nn.Sequential(OrderedDict(layers))
    for name in ("sgd", "adamw"):
        groups = make_optimizer(model, name, 0.1, 0.5).param_groups
        found = {(group["share"], group["weight_decay"]): [w.ndim for w in group["params"]] for group in groups}
        assert found == {(0.5, 0.1): [4], (0.5, 0.0): [1, 1, 1], (1.0, 0.1): [2], (1.0, 0.0): [1]}


def test_muon_takes_the_bodys_convolutions_at_a_share_of_the_rate_and_without_decay():
    layers = {
        "conv": nn.Conv2d(1, 2, 3),
        "norm": nn.BatchNorm2d(2),
        "flat": nn.Linear(2, 2),
        "head": nn.Linear(2, 2),
    }
    optimizer = make_optimizer(nn.Sequential(OrderedDict(layers)), "muon", 0.1, 0.5)
    assert not optimizer.together  # on a CPU
    groups = optimizer.param_groups
    found = {
        (group["orthogonal"], group["share"], group["weight_decay"]): [w.ndim for w in group["params"]]
        for group in groups
    }
    assert found == {
        (True, 0.5 * MUON_SHARE, 0.0): [4],
        (False, 0.5, 0.1): [2],
        (False, 0.5, 0.0): [1, 1, 1, 1],
        (False, 1.0, 0.1): [2],
        (False, 1.0, 0.0): [1],
    }


def test_scores_of_an_epoch_are_macro_averages():
    # Class 0: 2 of 3 found, 2 of 2 claimed; class 1: 1 of 1 found, 1 of 2 claimed.
    scores = epoch_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 0.5)
    assert (scores.loss, scores.accuracy) == (0.5, 0.75)
    assert scores.precision == pytest.approx((1 + 1 / 2) / 2)
    assert scores.recall == pytest.approx((2 / 3 + 1) / 2)


def test_a_gpu_that_is_not_there_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device=cuda: torch finds no GPU"):
        choose_device("cuda", 2)
    assert choose_device("auto", 2).type == "cpu"


FREED = """
import sys, psutil, torch
from braintumor.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.ones(1)
before = psutil.Process().memory_info().rss
torch.ones(25_000_000)
print((psutil.Process().memory_info().rss - before) / 1e9)
"""


# Elsewhere torch has an allocator of its own, or the C library has no mallopt.
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="needs glibc's allocator"
)
def test_freed_memory_is_kept_for_the_next_step():
    held = {}
    for way in ("kept", "handed back"):
        command = [sys.executable, "-c", FREED, way]
        held[way] = float(subprocess.run(command, capture_output=True, check=True, text=True, cwd=PROJECT).stdout)
    assert held["handed back"] < 0.02  # of the tensor's 0.1 GB
    assert held["kept"] > 0.09


def test_precision_is_what_is_asked_for_or_what_the_hardware_has(monkeypatch):
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("auto", CPU) == expected
