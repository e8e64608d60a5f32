"""Writing files and folders whole or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# No space, no space left of one's own, a file that is too large: such errors do not say which file.
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG


@contextmanager
def replacing_file(file: Path) -> Iterator[Path]:
    """Yield a path beside `file` that takes its place once the block has ended without an error.

    What is there already is never written into: it may be a hard link into DVC's cache.

    Raises
    ------
    OSError
        What the block raises; that of a full disk names `file`, and that of numpy, which has no number, is an EIO.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.stem}.partial{file.suffix}")
    try:
        yield beside
        beside.replace(file)
    except OSError as error:
        if error.errno is None:  # numpy's, of an array that was written in part
            reason = f"only a part could be written ({error}): is the disk full?"
            raise OSError(errno.EIO, reason, str(file)) from error
        if error.errno in FULL and not error.filename:
            error.filename = str(file)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` once the block has ended without an error."""
    new, old = (folder.with_name(f"{folder.name}.{word}") for word in ("partial", "old"))
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
