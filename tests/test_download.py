"""The stage download, through the real kaggle package, against a stand-in for Kaggle on loopback."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import yaml
from PIL import Image

from braintumor import sources
from braintumor.errors import UserError
from tests.fake_kaggle import SITECUSTOMIZE, FakeKaggle

ROOT = Path(__file__).parents[1]
SIX = [
    f"{folder}/{label}/{i}.png"
    for label in ("one", "two")
    for folder, i in (("Training", 0), ("Training", 1), ("Testing", 0))
]


def picture(side=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def make_zip(paths=SIX, side=4):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for seed, path in enumerate(paths):
            archive.writestr(path, picture(side, seed))
    return file.getvalue()


def make_folder(folder, paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            (folder / path).write_bytes(picture())
        else:
            (folder / path).mkdir()
    return folder


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Stage:
    """A folder to run the stage in, where data/raw is there from an earlier run."""

    def __init__(self, folder):
        self.folder, self.raw = folder, folder / "data/raw"
        (folder / "home").mkdir()
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        make_folder(self.raw, ["earlier.png"])

    def start(self, url="http://127.0.0.1:9", env=(), **data):
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["data"] |= {"dataset": "owner/name", "images": 6, "phantom_patients": 8} | data
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "FAKE_KAGGLE": url,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "stages.download", "--raw", "data/raw"],
            cwd=self.folder,
            env=environment | dict(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args, **options):
        process = self.start(*args, **options)
        process.out, process.err = process.communicate(timeout=60)
        return process

    def succeed(self, *args, **options):
        process = self.run(*args, **options)
        assert (process.returncode, process.err) == (0, "")
        return process.out

    def fail(self, *args, **options):
        """Return the one line that the failure is said in, having made sure that it did no harm."""
        process = self.run(*args, **options)
        assert process.returncode == 1
        assert process.err.startswith("error: ") and process.err.count("\n") == 1
        assert listing(self.raw) == ["earlier.png"]
        assert not self.raw.with_name("raw.partial").exists()
        return process.err


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.mark.parametrize("home", ["home", "/dev/null/home"], ids=["home", "home that cannot be written"])
def test_kaggle_without_account(stage, home):
    with FakeKaggle(make_zip()) as kaggle:
        out = stage.succeed(
            kaggle.url, env={"HOME": str(stage.folder / home), "KAGGLE_USERNAME": "", "KAGGLE_KEY": ""}
        )
    assert listing(stage.raw) == sorted(SIX)
    assert [path.name for path in stage.raw.parent.iterdir()] == ["raw"]
    (path, _, body), _ = kaggle.asked
    assert path == "/v1/datasets.DatasetApiService/DownloadDataset"
    assert body == {"ownerSlug": "owner", "datasetSlug": "name", "datasetVersionNumber": 1}
    assert not any("Authorization" in headers for _, headers, _ in kaggle.asked)
    assert out.splitlines()[0] == "downloading owner/name, version 1, from Kaggle"
    assert out.splitlines()[-1] == "data/raw: 6 images of 2 classes"
    assert "account" not in out  # the client's help on signing in


@pytest.mark.parametrize(
    ("env", "file", "scheme"),
    [
        ({"KAGGLE_API_TOKEN": "secret"}, None, "Bearer"),
        ({"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "secret"}, None, "Basic"),
        ({}, "access_token", "Bearer"),
        ({}, "kaggle.json", "Basic"),
    ],
)
def test_kaggle_with_account(stage, env, file, scheme):
    if file:
        (stage.folder / "home/.kaggle").mkdir()
        (stage.folder / "home/.kaggle" / file).write_text('{"username": "someone", "key": "secret"}')
    with FakeKaggle(make_zip()) as kaggle:
        stage.succeed(kaggle.url, env=env)
    asked = [headers["Authorization"] for path, headers, _ in kaggle.asked if path.endswith("DownloadDataset")]
    assert len(asked) == 1 and asked[0].startswith(scheme)


@pytest.mark.parametrize(
    ("status", "env", "words"),
    [
        (401, {}, "set up credentials"),
        (401, {"KAGGLE_USERNAME": "a", "KAGGLE_KEY": "b"}, "renew or remove the credentials"),
        (403, {}, "data/archive.zip"),
        (404, {}, "check data.dataset and data.version"),
    ],
)
def test_kaggle_refuses(stage, status, env, words):
    with FakeKaggle(refusals=[(status, {})]) as kaggle:
        error = stage.fail(kaggle.url, env=env)
    assert f"Kaggle says {status}" in error and "owner/name, version 1" in error and words in error


@pytest.mark.parametrize("partial", [None, "data/download/owner-name-1/name.zip"])
def test_no_network(stage, partial):
    if partial:
        make_folder(stage.folder, [partial])
    with socket.socket() as closed:  # bound and not listening
        closed.bind(("127.0.0.1", 0))
        error = stage.fail(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert "refused" in error
    assert not partial or (stage.folder / partial).exists()
    assert all(words in error for words in ("make demo", "data/archive.zip", "data.source=folder"))


@pytest.mark.parametrize(
    ("way", "content", "words"),
    [
        ("download", b"<html>Please sign in to this hotel's network</html>", "not a whole zip file"),
        ("download", make_zip()[:-200], "not a whole zip file"),
        ("by hand", make_zip()[:-200], "not a whole zip file"),
        ("by hand", make_zip().replace(b"IDAT", b"IDAX"), "not a whole zip file (Bad CRC-32"),
        ("by hand", make_zip(SIX[:5]), "holds 5 images, not the 6"),
        ("by hand", make_zip([*SIX, "../Training/one/2.png"]), "would land outside"),
    ],
    ids=["no zip", "truncated", "truncated by hand", "damaged", "too few", "outside"],
)
def test_bad_zip(stage, way, content, words):
    file = "data/download/owner-name-1/name.zip" if way == "download" else "data/archive.zip"
    if way == "by hand":
        (stage.folder / file).write_bytes(content)
    with FakeKaggle(content) as kaggle:
        error = stage.fail(kaggle.url)
    assert error.startswith(f"error: {file}: ") and words in error
    assert len(kaggle.asked) == (2 if way == "download" else 0)
    assert not (stage.folder / "data/download").exists()


def test_a_whole_download_stays_where_params_are_wrong(stage):
    seven = [*SIX, "Training/one/2.png"]
    with FakeKaggle(make_zip(seven)) as kaggle:
        error = stage.fail(kaggle.url)
        assert "name.zip: holds 7 images, not the 6 of data.images" in error
        kaggle.content = bytes(len(kaggle.content))  # what a second transfer would bring
        stage.succeed(kaggle.url, images=7)
    assert listing(stage.raw) == sorted(seven)
    assert [path.name for path in stage.raw.parent.iterdir()] == ["raw"]


def test_zip_by_hand_needs_no_network(stage):
    (stage.folder / "data/archive.zip").write_bytes(make_zip())
    out = stage.succeed()
    assert listing(stage.raw) == sorted(SIX)
    assert "using data/archive.zip" in out
    assert (stage.folder / "data/archive.zip").exists()


def test_tries_again_when_asked_to_wait(stage):
    refusals = [(429, {"Retry-After": "1"}), (503, {"Retry-After": "0"})]
    with FakeKaggle(make_zip(), refusals) as kaggle:
        start = time.monotonic()
        out = stage.succeed(kaggle.url)
    assert time.monotonic() - start > 1
    assert "Kaggle says 429 Too Many Requests, waiting 1 s (try 2 of 5)" in out
    assert "Kaggle says 503 Service Unavailable, waiting 0 s (try 3 of 5)" in out


@pytest.mark.parametrize(
    ("refusal", "requests", "words"),
    [
        ((500, {"Retry-After": "0"}), 5, "500 Internal Server Error, 5 times"),
        ((429, {"Retry-After": "3600"}), 1, "asks to wait 3600 s"),
    ],
)
def test_gives_up(stage, refusal, requests, words):
    with FakeKaggle(refusals=[refusal] * 9) as kaggle:
        assert words in stage.fail(kaggle.url)
    assert len(kaggle.asked) == requests


def test_retry_after():
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    assert 58 <= sources.retry_after(in_a_minute) <= 60
    assert sources.retry_after("Fri, 24 Sep 2021 00:00:00 GMT") == 0
    assert sources.retry_after("7") == 7
    assert sources.retry_after("soon") is sources.retry_after(None) is None


def test_silent_server(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    from kagglesdk import kaggle_env

    monkeypatch.setattr(sources, "TRIES", 2)
    monkeypatch.setattr(sources, "LONGEST_WAIT", 0)
    with FakeKaggle(stall=2) as kaggle:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, kaggle.url)
        with pytest.raises(UserError, match=r"Read timed out.*2 times"):
            sources.fetch_kaggle("owner/name", 1, tmp_path / "download", timeout=(1, 0.2))
        assert len(kaggle.asked) == 2


def test_goes_on_after_a_cut(stage):
    content = make_zip(side=1000)
    with FakeKaggle(content, cuts=[3_000_000]) as kaggle:
        out = stage.succeed(kaggle.url)
    assert "broke off" in out
    assert kaggle.asked[-1][1]["Range"] == f"bytes={2 << 20}-"  # the client writes whole MiB
    assert_unpacked(content, stage.raw)


def test_goes_on_after_a_kill(stage):
    content = make_zip(side=1000)
    with FakeKaggle(content, pace=0.05) as kaggle:
        process = stage.start(kaggle.url)
        partial = stage.folder / "data/download/owner-name-1/name.zip"
        deadline = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size > 1 << 20):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert listing(stage.raw) == ["earlier.png"]
        size = partial.stat().st_size
        assert 0 < size < len(content)
        kaggle.pace = 0
        stage.succeed(kaggle.url)
    assert kaggle.asked[-1][1]["Range"] == f"bytes={size}-"
    assert_unpacked(content, stage.raw)
    assert [path.name for path in stage.raw.parent.iterdir()] == ["raw"]


def assert_unpacked(content, folder):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path: (folder / path).read_bytes() for path in listing(folder)
        }


def test_phantom(stage):
    stage.succeed(source="phantom")
    assert "earlier.png" not in listing(stage.raw)


def test_folder(stage):
    make_folder(stage.folder / "own", SIX)
    stage.succeed(source="folder", folder="own")
    assert listing(stage.raw) == sorted(SIX)


@pytest.mark.parametrize("paths", [None, [*SIX, "Training/three/"]], ids=["missing", "empty class"])
def test_bad_folder(stage, paths):
    if paths:
        make_folder(stage.folder / "own", paths)
    error = stage.fail(source="folder", folder="own")
    assert "own: " in error and ("Training/three holds no image" if paths else "does not exist") in error


def test_link_that_leads_nowhere(stage):
    make_folder(stage.folder / "own", SIX).joinpath("Training/one/9.png").symlink_to("nowhere.png")
    assert "own/Training/one/9.png: No such file" in stage.fail(source="folder", folder="own")


LITTER = ["__MACOSX/Training/one/._0.png", "Training/one/.DS_Store", "Training/one/._0.png", "Training/Thumbs.db"]
LITTER += ["Training/.ipynb_checkpoints/0.png", "Training/one/.ipynb_checkpoints/0.png"]
LITTER += [".git/HEAD", ".thumbnails/0.png", "Training/one/.trashed-0.png"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (SIX, SIX),
        ([f"around/{path}" for path in SIX], SIX),
        (
            ["train/b/0.JPG", "train/a/0.bmp", "TEST/b/1.TIF"],
            ["Training/b/0.JPG", "Training/a/0.bmp", "Testing/b/1.TIF"],
        ),
        (["a/0.png", "b c/0.png"], ["Training/a/0.png", "Training/b c/0.png"]),
        (["x/a/0.png", "x/b/0.png", "x/patients.csv"], ["Training/a/0.png", "Training/b/0.png", "patients.csv"]),
        (["x/a/0.png", "x/b/0.png", "patients.csv"], ["Training/a/0.png", "Training/b/0.png", "patients.csv"]),
        (["Training/a/0.png", "Training/b/0.png"], ["Training/a/0.png", "Training/b/0.png"]),
        ([*SIX, *LITTER], SIX),
    ],
    ids=[
        "two levels",
        "folder around",
        "names in any case",
        "one level",
        "patients",
        "patients beside the folder around",
        "only Training",
        "litter",
    ],
)
def test_layouts(tmp_path, capsys, kind, paths, expected):
    if kind == "folder":
        source = make_folder(tmp_path / "own", paths)
    else:
        source = tmp_path / "own.zip"
        source.write_bytes(make_zip(paths))
    sources.copy_images(source, tmp_path)
    shutil.rmtree(source) if kind == "folder" else source.unlink()
    assert listing(tmp_path) == sorted(expected)
    assert capsys.readouterr().out == ""


def test_says_what_it_passes_over(tmp_path, capsys):
    source = make_folder(tmp_path / "own", [*SIX, "README.md", "Training/one/notes.txt", "Other/one/0.png"])
    sources.copy_images(source, tmp_path / "raw")
    assert listing(tmp_path / "raw") == sorted(SIX)
    assert "passed over 3 files that are no class's images, first Other/one/0.png" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses the name")
def test_a_name_that_cannot_be_printed_is_passed_over_like_another(tmp_path):
    source = make_folder(tmp_path / "own", [*SIX, "\udcdcbersicht.txt"])
    code = "import sys; from pathlib import Path; from braintumor import sources\n"
    code += "sources.copy_images(Path(sys.argv[1]), Path(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / "raw"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "first \\udcdcbersicht.txt" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_names_in_a_zip_are_read_in_utf_8_where_they_are_that(tmp_path, encoding):
    content = make_zip(["Sch@del/0.png", "b/0.png"])
    other = "ä".encode(encoding)
    file = tmp_path / "own.zip"
    # As macOS writes them, without the flag that calls them UTF-8, and as old tools of DOS did.
    file.write_bytes(content.replace(b"Sch@del", b"Sch" + other + b"del"[: 4 - len(other)]))
    sources.copy_images(file, tmp_path / "raw")
    assert (tmp_path / "raw/Training" / ("Schäde" if encoding == "utf-8" else "Schädel")).is_dir()


def test_links_are_followed(tmp_path):
    own = make_folder(tmp_path / "own", ["a/0.png"])
    make_folder(tmp_path / "elsewhere", ["0.png"])
    (own / "b").symlink_to(tmp_path / "elsewhere")
    (own / "a/1.png").symlink_to(tmp_path / "elsewhere/0.png")
    sources.copy_images(own, tmp_path / "raw")
    assert listing(tmp_path / "raw") == ["Training/a/0.png", "Training/a/1.png", "Training/b/0.png"]
    assert not any(path.is_symlink() for path in (tmp_path / "raw").rglob("*"))


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([], "needs the folders of two classes or more, has 0"),
        (["0.png", "1.png"], "two classes"),
        (["a/0.png"], "two classes"),
        (["Training/a/0.png", "b/0.png", "c/0.png"], "two classes"),
        (["a/b/c/d/0.png", "a/b/c/e/0.png"], "a/b/c is a folder inside a class's folder"),
        ([*SIX, "Training/one/more/0.png"], "Training/one/more is a folder inside a class's folder"),
        ([*SIX, "Testing/three/.DS_Store"], "Testing/three holds no image"),
        ([*SIX, "Testing/three/0.png"], "the class three is in Testing and not in Training"),
        (["Testing/a/0.png", "Testing/b/0.png"], "needs one folder Training"),
        ([*SIX, "Val/one/0.png"], "Val would be left out: put its images into Training"),
        ([*SIX, "validation/0.png"], "validation would be left out"),
        ([*SIX, "Training/one/A.png", "Training/one/a.PNG"], "Training/one/A.png and Training/one/a.PNG are one"),
        ([*SIX, "Training/one/\udcff.png"], "is not UTF-8"),
        (
            [*SIX, "training/one/0.png"],
            "needs one folder Training and at most one Testing, has Testing, Training, training",
        ),
    ],
)
def test_bad_layouts(paths, words):
    with pytest.raises(UserError, match=words):
        files = [PurePosixPath(path) for path in paths]
        sources.arrange(Path("own"), files, [path.parent for path in files])


@pytest.mark.parametrize("name", ["/a/0.png", "a/../../0.png", "..\\0.png", "C:\\0.png", "c:0.png", "link"])
def test_members_that_would_land_outside(tmp_path, name):
    member = zipfile.ZipInfo(name)
    if name == "link":
        member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match=r"archive member .* would land outside"):
        sources.copy_images(tmp_path / "own.zip", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_encrypted_zip(tmp_path):
    content = bytearray(make_zip())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the directory at the end
    (tmp_path / "own.zip").write_bytes(content)
    with pytest.raises(UserError, match="is encrypted; unpack it"):
        sources.copy_images(tmp_path / "own.zip", tmp_path / "raw")


def test_zip_with_a_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        (tmp_path / "own.zip").write_bytes(make_zip([*SIX, SIX[0]]))
    with pytest.raises(UserError, match="twice"):
        sources.copy_images(tmp_path / "own.zip", tmp_path / "raw")
