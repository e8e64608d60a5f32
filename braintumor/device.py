"""What a training runs on: the device and the numbers' type."""

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import torch
from torch import nn

from braintumor.errors import UserError


def choose_device(name: str, threads: int, number: int = 0, count: int = 1) -> torch.device:
    """Set torch up for exact repetition and return the device to compute on.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda"}
        ``auto`` is the GPU when there is one.
    threads : int
        Of the CPU; one and two threads round differently.
    number, count : int
        Which of the machine's GPUs, and how many are needed.

    Raises
    ------
    UserError
        If a GPU is asked for and there is none, or too few.
    """
    torch.set_num_threads(threads)
    # cuBLAS repeats exactly only with a workspace of its own. What has no exact variant on a GPU warns of it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every new tensor with NaN, to show who reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU; set it to auto or cpu, or mend the driver")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if count > torch.cuda.device_count():
        raise UserError(
            f"train.launcher starts {count} processes on a machine with {torch.cuda.device_count()} GPUs: "
            "lower --nproc-per-node, each needs one of its own"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, where it is glibc.

    Of itself glibc hands each block of over 32 MiB back to the system when it is freed, and the features of a
    batch are such blocks: the system would clear their pages anew at every step. See ``mallopt(3)``; other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # the numbers of malloc.h
        mallopt(mmap_max, 0)  # no block apart from the heap
        mallopt(trim_threshold, -1)  # and the heap never gets smaller


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions and matrix products compute in.

    Parameters
    ----------
    name : {"auto", "float32", "bfloat16"}
        ``auto`` is bfloat16 where the hardware has instructions for it.
    device : torch.device
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with batch norms that average over the batch of all processes.

    Raises
    ------
    UserError
        On the CPU, where torch has none.
    """
    if device.type != "cuda":
        raise UserError("train.sync_batch_norm: torch has it on GPUs only; set it to false")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def processor() -> str:
    """Return the name of the machine's processor."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    found = re.search(r"model name\s*: (.*)", info)
    return found[1] if found else platform.processor() or platform.machine()


def describe_environment(device: torch.device, precision: torch.dtype) -> dict[str, str | int]:
    """Return what decides how a training rounds, and on what it ran."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor(),
        "precision": str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
