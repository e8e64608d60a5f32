"""The stages of dvc.yaml, one module each: read params and inputs, call the library, write the outs."""

import argparse
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from braintumor.errors import UserError


def run(stage: Callable[..., None]) -> None:
    """Call a stage with the paths of its command line; an error of the user's is one line on stderr.

    Every parameter of `stage` is a path, given as ``--name PATH``, so that dvc.yaml shows each one.
    """
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(stage)))
    for name in inspect.signature(stage).parameters:
        parser.add_argument(f"--{name}", type=Path, required=True)
    try:
        stage(**vars(parser.parse_args()))
    except UserError as error:
        fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or "no memory is left"
        fail(f"{reason[:200]}: it needs more memory, or a lower batch_size where the stage has one in params.yaml")
    except OSError as error:  # no space, no permission, an input that no stage has made
        fail(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def fail(reason: str) -> NoReturn:
    """End with a reason; several processes of one machine mostly fail alike, and the first says it for all."""
    process = os.environ.get("LOCAL_RANK", "0")
    if process != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, once the first one has failed
        time.sleep(5)  # the others may be some seconds behind
        reason = f"process {process}: {reason}"
    sys.exit(f"error: {reason}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a GPU or on the CPU, has found no memory."""
    # What torch on a CPU, torch on a GPU, and cuBLAS say.
    signs = "can't allocate memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def workers() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
