"""What people run beside the pipeline."""

import sys
from collections.abc import Callable

from braintumor.errors import UserError


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
