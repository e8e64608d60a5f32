"""The state of an unfinished training, so that it can be stopped at any moment and go on."""

import hashlib
import os
import platform
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


def claim(folder: Path) -> FileLock:
    """Let no other process train in a folder until `release`, or until this process ends, whatever ends it.

    Parameters
    ----------
    folder : Path
        Made where it is missing; gets a file ``lock`` with the number of this process.

    Raises
    ------
    UserError
        If another one trains there, such as one whose DVC was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "lock"
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{file}: process {file.read_text()} trains here, perhaps left behind by a DVC that was killed: "
            "end it with kill and start again, which goes on from where it was"
        ) from None
    except OSError as error:
        print(f"{file}: cannot be locked ({error.strerror}): see that no other training runs here", flush=True)
    file.write_text(f"{os.getpid()} on {platform.node()}")
    return lock


def release(lock: FileLock) -> None:
    """Let others train again where `claim` has kept them away."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


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
            try:
                torch.save(state, stream)
            except RuntimeError as error:
                # Of a full disk torch says no more than that a file could not be ended.
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            stream.flush()
            os.fsync(stream.fileno())

    def delete(self) -> None:
        """Delete the state, and its folder where nothing else is in it."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):
            self.file.parent.rmdir()
