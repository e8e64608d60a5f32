"""What people run beside the pipeline."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from braintumor.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def run(*command: str) -> str:
    """Run a command in the project; end with what it says if it fails."""
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


def run_script(main: Callable[[], None]) -> None:
    """Call a script; an error of the user's, or a file that is not there, is one line on stderr."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
