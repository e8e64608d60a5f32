"""Bringing a data set in, from Kaggle or from a folder or zip of one's own: checked, and in one layout."""

import io
import lzma
import os
import re
import shutil
import stat
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import MaxRetryError

from braintumor.errors import UserError
from braintumor.tables import TESTING, TRAINING

IMAGES = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
SPLITS = {"training": TRAINING, "train": TRAINING, "testing": TESTING, "test": TESTING}
LITTER = {"__MACOSX", "Thumbs.db"}  # and what is hidden by a dot, such as .DS_Store, ._a.png and .git
SET_ASIDE = {"val", "valid", "validation", "dev"}  # for validation, which the stage split cuts off itself

TRIES = 5
LONGEST_WAIT = 60  # seconds
BY_HAND = "download the zip in a browser and put it at data/archive.zip"

Opener = Callable[[], IO[bytes]]


class UnexpectedCount(UserError):  # noqa: N818, it may be the param that is wrong
    """A data set has another number of images than it must have."""


def copy_images(source: Path, target: Path, expected: int | None = None) -> None:
    """Copy a data set into the layout that every stage reads, ``Training/<class>/`` and ``Testing/<class>/``.

    Parameters
    ----------
    source : Path
        A folder or zip as `arrange` describes it.
    target : Path
        An empty folder. It is left half filled by an error.
    expected : int, optional
        Number of images that there must be.

    Raises
    ------
    UserError
        If the source is missing, a bad zip or laid out otherwise.
    UnexpectedCount
        If it has another number of images.
    """
    if not source.exists():
        raise UserError(f"{source}: does not exist; set data.folder to a folder or zip with one folder per class")
    with ExitStack() as stack:
        try:
            if source.is_dir():
                files, folders = _list_folder(source)
            else:
                files, folders = _list_zip(stack.enter_context(open_zip(source)))
            places, passed_over = arrange(source, files, folders)
            found = sum(place.parent != PurePosixPath() for place in places.values())
            if expected not in (None, found):
                raise UnexpectedCount(
                    f"{source}: holds {found} images, not the {expected} of data.images: another version of the "
                    "data set, or not all of it; get the one that data.version pins, or set data.images"
                )
            for path, place in tqdm(places.items(), "copying", unit="image", disable=None):
                file = target / place
                file.parent.mkdir(parents=True, exist_ok=True)
                # Reading a member to its end compares its checksum: a damaged image does not get through.
                with files[path]() as reader, file.open("wb") as writer:
                    shutil.copyfileobj(reader, writer)
        except (BadZipFile, EOFError, NotImplementedError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{source}: is not a whole zip file ({error}); get it again") from None
    if passed_over:
        first = str(passed_over[0]).encode(errors="backslashreplace").decode()
        print(f"{source}: passed over {len(passed_over)} files that are no class's images, first {first}")


def open_zip(file: Path) -> ZipFile:
    """Open a zip; names that it does not call UTF-8 are often so all the same, as macOS writes them."""
    try:
        return ZipFile(file, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        try:
            return ZipFile(file)
        except UnicodeDecodeError as error:
            raise BadZipFile(f"a name in it is not what it says: {error}") from None


def arrange(
    source: Path, files: Iterable[PurePosixPath], folders: Iterable[PurePosixPath] = ()
) -> tuple[dict[PurePosixPath, PurePosixPath], list[PurePosixPath]]:
    """Decide from the paths alone where each image of a data set goes.

    There is one folder per class, in ``Training`` and ``Testing`` (or ``train`` and ``test``, in any case) or
    without that level, which makes all of it training data. One folder may be around it all. A table
    ``patients.csv`` beside the folders, or beside the one around them, comes along. What is hidden does not count.

    Parameters
    ----------
    source : Path
        What to call the data set in an error.
    files, folders : iterables of PurePosixPath
        Relative to the source. The folders that hold files need not be among the folders.

    Returns
    -------
    places : dict of PurePosixPath to PurePosixPath
        Where to copy each file to, in the order of names.
    passed_over : list of PurePosixPath
        Files that are neither images of a class nor an operating system's litter.
    """
    files = sorted(path for path in files if not _is_litter(path))
    content = defaultdict(list)
    for path in files:
        content[path.parent].append(path)
    inside = defaultdict(list)
    parents = {parent for path in files for parent in path.parents}
    for folder in sorted(parents.union(path for path in folders if not _is_litter(path)) - {PurePosixPath()}):
        inside[folder.parent].append(folder)

    root = PurePosixPath()
    if len(inside[root]) == 1 and inside[root][0].name.lower() not in SPLITS:
        root = inside[root][0]
    split_folders = [folder for folder in inside[root] if folder.name.lower() in SPLITS]
    splits = sorted(SPLITS[folder.name.lower()] for folder in split_folders)
    if split_folders and splits not in ([TRAINING], [TESTING, TRAINING]):
        names = ", ".join(folder.name for folder in split_folders)
        raise UserError(f"{source}: needs one folder {TRAINING} and at most one {TESTING}, has {names}")
    pictured = {parent for path in files if path.suffix.lower() in IMAGES for parent in path.parents}
    aside = [folder for folder in inside[root] if folder.name.lower() in SET_ASIDE and folder in pictured]
    if split_folders and aside:
        raise UserError(
            f"{source}: {aside[0].name} would be left out: put its images into {TRAINING}; the stage split cuts "
            "off what validates"
        )
    if split_folders:
        pairs = [(SPLITS[top.name.lower()], folder) for top in split_folders for folder in inside[top]]
    else:
        pairs = [(TRAINING, folder) for folder in inside[root]]

    places: dict[PurePosixPath, PurePosixPath] = {}
    classes: dict[str, set[str]] = {TRAINING: set(), TESTING: set()}
    for split, folder in pairs:
        if inside[folder]:
            raise UserError(
                f"{source}: {inside[folder][0]} is a folder inside a class's folder; expected "
                f"{TRAINING}/<class>/ and {TESTING}/<class>/, or <class>/, with images only"
            )
        images = [path for path in content[folder] if path.suffix.lower() in IMAGES]
        if not images:
            raise UserError(f"{source}: the class folder {folder} holds no image; add images or delete it")
        places |= {path: PurePosixPath(split, folder.name, path.name) for path in images}
        classes[split].add(folder.name)
    if len(classes[TRAINING]) < 2:
        raise UserError(
            f"{source}: needs the folders of two classes or more, has {len(classes[TRAINING])}; expected "
            f"{TRAINING}/<class>/ and {TESTING}/<class>/, or <class>/"
        )
    if unknown := sorted(classes[TESTING] - classes[TRAINING]):
        raise UserError(
            f"{source}: the class {unknown[0]} is in {TESTING} and not in {TRAINING}; rename or delete it"
        )
    _check_names(source, places.values())
    for table in (root / "patients.csv", PurePosixPath("patients.csv")):
        if table in files:
            places[table] = PurePosixPath("patients.csv")
            break
    return places, [path for path in files if path not in places]


def _check_names(source: Path, files: Iterable[PurePosixPath]) -> None:
    """Refuse names that a table or another disk cannot hold."""
    seen: dict[str, PurePosixPath] = {}
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UserError(f"{source}: the name of {str(path)!r} is not UTF-8; rename it") from None
        other = seen.setdefault(str(path).casefold(), path)
        if other != path:
            raise UserError(f"{source}: {other} and {path} are one file on many disks; rename one")


def _is_litter(path: PurePosixPath) -> bool:
    return any(part in LITTER or part.startswith(".") for part in path.parts)


def _list_folder(folder: Path) -> tuple[dict[PurePosixPath, Opener], set[PurePosixPath]]:
    """Return how to open each file of a folder, and its folders; links are followed."""

    def fail(error: OSError) -> None:
        raise error

    files: dict[PurePosixPath, Opener] = {}
    folders: set[PurePosixPath] = set()
    for top, names, contents in os.walk(folder, onerror=fail, followlinks=True):
        path = PurePosixPath(Path(top).relative_to(folder).as_posix())
        folders.update(path / name for name in names)
        files |= {path / name: partial(Path(top, name).open, "rb") for name in contents}
        if len(path.parts) == 3:  # the deepest that a class can be; a link in a circle ends here too
            names.clear()
    return files, folders


def _list_zip(archive: ZipFile) -> tuple[dict[PurePosixPath, Opener], set[PurePosixPath]]:
    """Return how to open each file of a zip, and its folders; nothing that points outside gets through."""
    files: dict[PurePosixPath, Opener] = {}
    folders: set[PurePosixPath] = set()
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        path = PurePosixPath(name)
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or is_link:
            raise UserError(
                f"{archive.filename}: archive member {member.filename!r} would land outside the target; do not "
                "trust this file, get it again from where it is published"
            )
        if member.flag_bits & 1:
            raise UserError(f"{archive.filename}: is encrypted; unpack it and set data.folder to the folder")
        if path in files:
            raise UserError(f"{archive.filename}: holds {member.filename!r} twice; make it anew")
        if name.endswith("/"):
            folders.add(path)
        else:
            files[path] = partial(archive.open, member)
    return files, folders


def fetch_kaggle(dataset: str, version: int, folder: Path, timeout: tuple[float, float] = (10, 60)) -> Path:
    """Download a version of a Kaggle data set, going on from where an earlier call was broken off.

    Parameters
    ----------
    dataset : str
        Owner and name, as in the address of its page.
    version : int
    folder : Path
        Where the zip is made. One per version: the client takes a file of another one for its own.
    timeout : pair of float
        Seconds to wait for a connection, and for the next bytes.

    Returns
    -------
    Path
        The zip, of the size that Kaggle announced; nothing else is checked.

    Raises
    ------
    UserError
        If Kaggle cannot be reached, refuses, or fails time and again.
    """
    print(f"downloading {dataset}, version {version}, from Kaggle", flush=True)
    archive = folder / f"{dataset.split('/')[1]}.zip"
    for attempt in range(1, TRIES + 1):
        wait = min(2.0**attempt, LONGEST_WAIT)
        try:
            with _time_limits(timeout):
                _call_client(f"{dataset}/{version}", folder)
            return archive
        except requests.HTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise UserError(_refusal(error.response, dataset, version)) from None
            problem = f"Kaggle says {status} {error.response.reason}"
            asked = retry_after(error.response.headers.get("Retry-After"))
            wait = wait if asked is None else asked
        except (requests.RequestException, ValueError) as error:
            problem = f"the transfer from Kaggle broke off ({_cause(error)})"
            # urllib3 says so where no connection came about; where one broke, another try may well help.
            if attempt == 1 and error.args and isinstance(error.args[0], MaxRetryError):
                raise UserError(
                    f"Kaggle cannot be reached ({_cause(error)}): run `make demo`, which needs no "
                    f"network, or {BY_HAND}, or set data.source=folder"
                ) from None
        if wait > LONGEST_WAIT:
            raise UserError(f"{problem} and asks to wait {wait:.0f} s: try again then, or {BY_HAND}")
        if attempt < TRIES:
            print(f"{problem}, waiting {wait:.0f} s (try {attempt + 1} of {TRIES})", flush=True)
            time.sleep(wait)
    raise UserError(f"{problem}, {TRIES} times: run this again later, it goes on from where it was, or {BY_HAND}")


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; None without either."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _refusal(response: requests.Response, dataset: str, version: int) -> str:
    """Say why Kaggle will not hand out the data set, whoever asks again."""
    what = f"Kaggle says {response.status_code} {response.reason} for {dataset}, version {version}"
    if response.status_code == 404:
        return f"{what}: there is no such data set or version; check data.dataset and data.version"
    if response.status_code not in (401, 403):
        return f"{what}: {BY_HAND}"
    if "Authorization" in response.request.headers:
        return f"{what}: renew or remove the credentials in KAGGLE_* variables or ~/.kaggle, or {BY_HAND}"
    return f"{what}: set up credentials (https://www.kaggle.com/settings/api), or {BY_HAND}"


def _cause(error: object) -> str:
    """Return the last and telling part of an error that requests and urllib3 have wrapped."""
    while isinstance(error, Exception):
        error = getattr(error, "reason", None) or (error.args[0] if error.args else type(error).__name__)
    return " ".join(str(error).split()).rsplit(": ", 1)[-1]


@contextmanager
def _time_limits(timeout: tuple[float, float]) -> Iterator[None]:
    """Give every request of the block a time limit: the client sets none, or five minutes.

    All of its requests pass here, those of its import and of signing in as well.
    """
    send = HTTPAdapter.send

    def limited(self: HTTPAdapter, *args: Any, **options: Any) -> requests.Response:
        return send(self, *args, **options | {"timeout": timeout})

    HTTPAdapter.send = limited
    try:
        yield
    finally:
        HTTPAdapter.send = send


class _Lines(tqdm):
    """The client's progress bar where there is no terminal: a plain line every ten seconds."""

    def __init__(self, **options: Any) -> None:
        text = "{n_fmt}B of {total_fmt}B, {rate_fmt}"
        super().__init__(**options, mininterval=10, bar_format=text)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        print(self, end="\n" if pos is None else "", file=self.fp, flush=True)  # with a pos, tqdm ends the line


def _call_client(dataset: str, folder: Path) -> None:
    """Let the kaggle package download ``owner/name/version``, once."""
    lines = partial(_Lines, file=sys.stdout)
    with redirect_stdout(io.StringIO()):  # help on signing in, notices, addresses: none of it is about us
        try:
            import kaggle
        except OSError:  # it makes a folder for its settings, and not every home can be written to
            os.environ["KAGGLE_CONFIG_DIR"] = str(folder)
            import kaggle  # noqa: F401
        from kaggle.api import kaggle_api_extended as client

        api = client.KaggleApi()
        with suppress(SystemExit):  # no credentials are set up, and public data need none
            api.authenticate()
        # Its own retries pass over 5xx and the first request, and wait for as long as a server asks.
        api.download_file = partial(api.download_file, max_retries=0)
        if not sys.stderr.isatty():
            client.tqdm = lines
        # Not `force`, which would begin anew where there is half a file.
        api.dataset_download_files(dataset, path=str(folder), quiet=False)
