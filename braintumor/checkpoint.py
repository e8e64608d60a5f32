"""The state of an unfinished training, so that it can be stopped at any moment and go on."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from braintumor.errors import UserError
from braintumor.files import replacing_file


def fingerprint(files: list[Path], *values: object) -> str:
    """Return a hash of files' contents and values, the same for as long as nothing of it changes.

    Parameters
    ----------
    files : list of Path
        Code and data.
    *values : object
        Whatever `repr` tells apart, such as params.
    """
    digest = hashlib.sha256(repr(values).encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


class Checkpoint:
    """One file that holds the newest state of a training, whole at any moment.

    Parameters
    ----------
    folder : Path
    key : str
        From `fingerprint`: a training of other params, code or data has another file.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.file = folder / f"training-{key[:16]}.pt"
        self._lock = FileLock(folder / "lock")

    def claim(self) -> None:
        """Let no other process train here until this one ends, whatever ends it.

        Raises
        ------
        UserError
            If another one does, such as one whose DVC was killed.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{self._lock.lock_file}: another training runs in this folder: wait until it has ended, or end it"
            ) from None

    def load(self) -> dict | None:
        """Return the state that was saved last, None where there is none."""
        if not self.file.exists():
            return None
        try:
            return torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            raise UserError(
                f"{self.file}: cannot be read ({type(error).__name__}): delete it to start anew"
            ) from None

    def save(self, state: dict) -> None:
        """Put a state in the place of the last one; killed at any moment, one of the two is there."""
        with replacing_file(self.file) as beside, beside.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def delete(self) -> None:
        """Delete the state, and its folder where nothing else is in it; others may train here again."""
        self.file.unlink(missing_ok=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
        with suppress(OSError):
            self.file.parent.rmdir()
