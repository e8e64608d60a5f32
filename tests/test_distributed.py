"""Several processes on the CPU, started by torchrun as train.launcher does."""

import re
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from braintumor.distributed import check_launcher
from braintumor.errors import UserError
from tests.conftest import PROJECT

STAGE = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]["train"]["cmd"]
LAUNCHER = "torchrun --standalone --nproc-per-node=2"
TWO = STAGE.replace("${train.launcher}", LAUNCHER)
ONE = STAGE.replace("${train.launcher}", "python")
# No batch norm and no dropout: the processes' gradients are those of the whole batch.
PLAIN = {"model": "cnn", "channels": [8, 8, 16], "hidden": 16, "dropout": 0.0, "lr": 0.02, "epochs": 4}


def curves(checkout):
    return pd.read_csv(checkout.folder / "plots/curves.csv")


def start(checkout, command):
    """Start a command whose stdout can be read as it comes; its stderr goes into a file."""
    return subprocess.Popen(
        command.split(),
        cwd=checkout.folder,
        env=checkout.env,
        stdout=subprocess.PIPE,
        stderr=(checkout.folder / "stderr.txt").open("w"),
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(("accumulation", "frozen_epochs"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_two_processes_give_the_curve_of_one(checkout, accumulation, frozen_epochs):
    checkout.params({"train": PLAIN | {"accumulation": accumulation, "frozen_epochs": frozen_epochs}})
    checkout.run(ONE)
    one, weights = curves(checkout), load_file(checkout.folder / "models/model.safetensors")
    output = checkout.run(TWO)
    assert "one of 2 processes" in output
    assert output.count("epoch 4/4") == 1  # only the first one prints
    two = curves(checkout)
    # Only the order of additions differs, a part in ten million; many steps leave it under a thousandth.
    for name in ("train_loss", "validation_loss"):
        assert two[name].to_numpy() == pytest.approx(one[name].to_numpy(), abs=1e-3)
    for name, value in load_file(checkout.folder / "models/model.safetensors").items():
        assert torch.allclose(value, weights[name], atol=1e-3), name
    assert not (checkout.folder / "models/unfinished").exists()


@pytest.mark.slow
def test_another_number_of_processes_goes_on_where_one_was_killed_or_preempted(checkout):
    # Of four steps each, by SGD: Muon's are as long where the gradient is hardly more than its rounding.
    checkout.params({"train": PLAIN | {"epochs": 30, "optimizer": "sgd"}})
    checkout.run(ONE)
    undisturbed = curves(checkout)
    # All are killed in the third step of the fourth epoch, which is lost.
    checkout.run(checkout.train_until(15, signal.SIGKILL, LAUNCHER), code=1)  # torchrun's own
    # One goes on, and is preempted after five epochs and two steps of its own.
    output = checkout.run(checkout.train_until(22, signal.SIGTERM), code=128 + signal.SIGTERM)
    assert "going on after epoch 3 of 30\n" in output
    assert output.count("stopped: models/unfinished/") == 1
    # Two go on amid that epoch; both stop in the step after that in which one is preempted, their sixteenth.
    output = checkout.run(checkout.train_until(15, signal.SIGTERM, LAUNCHER, everyone=False), code=1)
    assert "going on after epoch 8 of 30 and 2 of 4 batches of the next\n" in output
    assert output.count("stopped: models/unfinished/") == 1
    # And one goes on from two, amid an epoch.
    assert "going on after epoch 12 of 30 and 2 of 4 batches of the next\n" in checkout.run(ONE)
    resumed = curves(checkout)
    assert len(resumed) == len(undisturbed) == 30
    assert resumed["train_loss"].to_numpy() == pytest.approx(undisturbed["train_loss"].to_numpy(), abs=5e-3)
    # One of 64 images may fall on the other side.
    assert resumed["train_accuracy"].to_numpy() == pytest.approx(
        undisturbed["train_accuracy"].to_numpy(), abs=0.02
    )


@pytest.mark.slow
def test_two_processes_stop_where_one_is_preempted_and_end_as_if_they_had_not(checkout):
    """With batch norm and dropout; so they also repeat exactly."""
    weights = checkout.folder / "models/model.safetensors"
    checkout.params({"train": {"epochs": 4, "dropout": 0.3, "batch_size": 4}})
    checkout.run(TWO)
    undisturbed = weights.read_bytes()
    # The second one gets the signal in its 24th step, the seventh of the second epoch's 17.
    output = checkout.run(checkout.train_until(24, signal.SIGTERM, LAUNCHER, everyone=False), code=1)
    assert output.count("stopped: models/unfinished/") == 1
    output = checkout.run(TWO)
    # Told by all at the step after the next.
    assert "going on after epoch 1 of 4 and 8 of 17 batches of the next" in output
    assert weights.read_bytes() == undisturbed


@pytest.mark.slow
def test_three_processes_go_on_where_they_were_stopped_as_if_they_had_not(checkout):
    """Three numbers' sum depends on their order."""
    three = LAUNCHER.replace("=2", "=3")
    weights = checkout.folder / "models/model.safetensors"
    checkout.params({"train": {"epochs": 3, "batch_size": 6}})
    checkout.run(STAGE.replace("${train.launcher}", three))
    undisturbed = weights.read_bytes()
    # In the first epoch's 11 steps, so that every epoch that may be the best comes after it.
    checkout.run(checkout.train_until(5, signal.SIGTERM, three), code=1)
    output = checkout.run(STAGE.replace("${train.launcher}", three))
    assert "going on after epoch 0 of 3 and " in output
    assert weights.read_bytes() == undisturbed


@pytest.mark.slow
def test_a_sigterm_to_torchrun_stops_all_and_is_taken_up_again(checkout):
    checkout.params({"train": PLAIN | {"epochs": 200}})
    process = start(checkout, TWO)
    for line in process.stdout:
        if line.startswith("epoch 2/200"):
            process.terminate()
        elif line.startswith("stopped: models/unfinished/"):
            break
    else:
        pytest.fail((checkout.folder / "stderr.txt").read_text())
    assert process.wait(timeout=60) == 1
    process.communicate()
    process = start(checkout, ONE)
    assert any(line.startswith("going on after epoch ") for line in process.stdout)
    process.kill()
    process.communicate()


def check_report_of_killed(output, pid):
    """Torchrun's one report, which says who was first; the other process adds nothing."""
    assert output.count("Root Cause") == output.count("Traceback") == 1
    assert f"Signal 9 (SIGKILL) received by PID {pid}" in output.split("Root Cause")[1]
    assert "error:" not in output.lower().replace("childfailederror:", "")


@pytest.mark.slow
def test_killing_one_process_ends_all_and_says_which(checkout):
    checkout.params({"train": PLAIN | {"epochs": 500}})
    process = start(checkout, TWO)
    started = any(line.startswith("epoch 2/500") for line in process.stdout)
    assert started, (checkout.folder / "stderr.txt").read_text()
    workers = psutil.Process(process.pid).children(recursive=True)
    second = next(worker for worker in workers if worker.environ().get("RANK") == "1")
    began = time.monotonic()
    second.kill()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 20
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    check_report_of_killed((checkout.folder / "stderr.txt").read_text(), second.pid)


@pytest.mark.slow
def test_killing_one_process_while_the_other_is_in_a_long_step_adds_nothing(checkout):
    """Torchrun's signal comes before the other process can see that it is alone."""
    patch = (
        "import os, signal, time, braintumor.training as training\n"
        "step, steps, told = training.train_step, [], []\n"
        "def slow(*arguments):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 5 and os.environ['RANK'] == '1':\n"
        "        time.sleep(1)\n"
        "        print('killed:', os.getpid(), flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    if len(steps) == 5:\n"
        "        stop = signal.getsignal(signal.SIGTERM)\n"
        "        signal.signal(signal.SIGTERM, lambda *of: (told.append(1), stop(*of)))\n"
        "        while not told:\n"
        "            time.sleep(0.1)\n"
        "        print('told', flush=True)\n"
        "    return step(*arguments)\n"
        "training.train_step = slow\n"
    )
    output = checkout.run(checkout.train_with(patch, LAUNCHER), code=1)
    check_report_of_killed(output, re.search(r"killed: (\d+)", output)[1])
    assert "told\n" in output


def test_gradients_that_cannot_be_dealt_out_are_one_line(checkout):
    checkout.params({"train": PLAIN | {"batch_size": 15}})
    output = checkout.run(TWO, code=1)
    (line,) = re.findall(r"^error:.*$", output, re.MULTILINE)
    assert line.startswith("error: train.batch_size: 15 of 70 images cannot be dealt out to 2 processes")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"])
def test_processes_that_something_else_has_started_do_not_each_train_alone(monkeypatch, name):
    for many in ("8", "eight"):
        monkeypatch.setenv(name, many)
        with pytest.raises(UserError, match=rf"^train.launcher: {many} processes were started \({name}\)"):
            check_launcher()
    for alone in ("1", ""):
        monkeypatch.setenv(name, alone)
        check_launcher()


def test_processes_that_something_else_has_started_do_not_blame_one_another(checkout):
    checkout.env["PMI_SIZE"] = "2"
    lock = checkout.folder / "models/unfinished/lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock, fallback_to_soft=False):  # as the other one has it
        output = checkout.run(ONE, code=1)
    assert output.startswith("error: train.launcher: 2 processes were started (PMI_SIZE)")


@pytest.mark.parametrize("joining", [False, True])
def test_a_process_that_fails_alone_says_why(checkout, joining):
    """Also where the first one is still busy joining it."""
    patch = (
        "import os, torch.distributed as dist\nfrom braintumor.errors import UserError\n"
        "join, make = dist.init_process_group, stage.make_training\n"
        "def slow(*arguments):\n"
        "    join(*arguments)\n"
        f"    if {joining} and os.environ['RANK'] == '0':\n"
        "        dist.barrier()\n"
        "def failing(*arguments):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise UserError('nothing could be downloaded')\n"
        "    return make(*arguments)\n"
        "dist.init_process_group, stage.make_training = slow, failing\n"
    )
    output = checkout.run(checkout.train_with(patch, LAUNCHER), code=1)
    errors = re.findall(r"^error:.*$", output, re.MULTILINE)
    assert errors == ["error: process 1: nothing could be downloaded"]
    assert output.count("Traceback") == 1  # torchrun's


def test_batch_norms_of_two_processes_are_those_of_two_parts_in_one(checkout):
    """Each part of a batch is normalised by its own images, in one process or in two."""
    norms = {"precision": "float32", "epochs": 3, "lr": 0.05}
    checkout.params({"train": norms | {"accumulation": 2}})
    checkout.run(ONE)
    one = curves(checkout)
    checkout.params({"train": {"accumulation": 1}})
    checkout.run(TWO)
    assert curves(checkout)["train_loss"].to_numpy() == pytest.approx(one["train_loss"].to_numpy(), abs=1e-3)


def test_synchronised_norms_need_a_gpu(checkout):
    checkout.params({"train": {"sync_batch_norm": True}})
    output = checkout.run(ONE, code=1)
    assert output.startswith("error: train.sync_batch_norm: torch has it on GPUs only")
    assert output.count("\n") == 1
