import sys

import numpy as np
import pytest
import torch

import stages


def out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has none.")


def out_of_cublas_memory():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def failing(function, monkeypatch):
    """Return what `stages.run` ends with for a stage that calls a function."""

    def stage():
        function()

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as caught:
        stages.run(stage)
    return caught.value.code


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (out_of_gpu_memory, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none."),
        (out_of_cublas_memory, "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        (lambda: torch.empty(10**15), "can't allocate memory"),
        (lambda: np.empty(10**15), "Unable to allocate"),
    ],
)
def test_memory_that_does_not_suffice_is_one_line(function, reason, monkeypatch):
    message = failing(function, monkeypatch)
    assert message.startswith("error: ") and "\n" not in message and reason in message
    assert message.endswith("needs more memory, or a lower batch_size where the stage has one in params.yaml")


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("no label")])
def test_a_mistake_of_the_code_keeps_its_traceback(error, monkeypatch):
    def stage():
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(type(error), match=str(error)):
        stages.run(stage)
