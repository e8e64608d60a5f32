import errno
import os

import pytest

from braintumor.files import replacing_file, replacing_folder


def test_a_file_is_replaced_and_a_link_to_the_old_one_is_left_alone(tmp_path):
    file, link = tmp_path / "a.csv", tmp_path / "cache"
    file.write_text("old")
    os.link(file, link)
    with replacing_file(file) as beside:
        beside.write_text("new")
        assert beside.suffix == ".csv"
    assert (file.read_text(), link.read_text()) == ("new", "old")


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("old")
    with pytest.raises(KeyError), replacing_file(file) as beside:
        beside.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert file.read_text() == "old"


def test_the_error_of_a_full_disk_says_which_file(tmp_path):
    file = tmp_path / "a.csv"
    with pytest.raises(OSError, match="left on device") as caught, replacing_file(file) as beside:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(file) and not beside.exists()
    with pytest.raises(FileNotFoundError) as caught, replacing_file(file):
        (tmp_path / "input.csv").read_text()
    assert caught.value.filename == str(tmp_path / "input.csv")


def test_the_error_of_an_input_does_not_blame_the_file_that_is_written(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as caught, replacing_file(tmp_path / "a.csv"):
        raise OSError(errno.EIO, "Input/output error")
    assert caught.value.filename is None


def test_an_error_without_a_number_keeps_its_words(tmp_path):
    # What numpy says of an array that the disk has no room for.
    words = r"only a part could be written \(160000 requested and 609 written\): is the disk full\?"
    with pytest.raises(OSError, match=words) as caught:  # noqa: SIM117
        with replacing_file(tmp_path / "a.npy"):
            raise OSError("160000 requested and 609 written")
    assert caught.value.filename == str(tmp_path / "a.npy")


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "old").touch()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "raw") as folder:
        (folder / "new").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["raw", "old"]


def test_a_folder_is_replaced_whole(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "old").touch()
    with replacing_folder(tmp_path / "raw") as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["raw", "new"]


def test_a_folder_put_aside_by_a_killed_run_comes_back(tmp_path):
    (tmp_path / "raw.old").mkdir()
    (tmp_path / "raw.old" / "old").touch()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "raw"):
        raise KeyError
    assert (tmp_path / "raw" / "old").exists()
