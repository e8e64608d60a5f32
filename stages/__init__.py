"""The stages of dvc.yaml, one module each: read params and inputs, call the library, write the outs."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

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
        # Processes that torchrun has started on one machine mostly fail alike: one of them says why.
        sys.exit(f"error: {error}" if os.environ.get("LOCAL_RANK", "0") == "0" else 1)
    except OSError as error:  # no space, no permission, an input that no stage has made
        sys.exit(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def workers() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
