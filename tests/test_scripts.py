import sys

import pytest

from scripts import bench, demo
from tests.conftest import PROJECT


def test_the_demo_changes_params_and_nothing_else(tmp_path):
    demo.prepare(tmp_path / "demo", {"train": {"epochs": 3}})
    ours, theirs = PROJECT / "dvc.yaml", tmp_path / "demo" / "dvc.yaml"
    assert ours.read_bytes() == theirs.read_bytes()
    for module in (PROJECT / "braintumor").glob("*.py"):
        assert (tmp_path / "demo/braintumor" / module.name).read_bytes() == module.read_bytes()
    text = (tmp_path / "demo" / "params.yaml").read_text()
    assert "epochs: 3" in text and "source: kaggle" in text


def test_a_second_demo_takes_the_newest_code(tmp_path):
    demo.prepare(tmp_path / "demo", {})
    (tmp_path / "demo/stages/old.py").touch()
    demo.prepare(tmp_path / "demo", {})
    assert not (tmp_path / "demo/stages/old.py").exists()


def test_seconds_and_memory_are_those_of_the_command(tmp_path):
    program = "import time; block = b'1' * 300_000_000; time.sleep(0.3)"
    ballast = b"1" * 800_000_000  # the size of who measures does not count
    seconds, memory = bench.measure([sys.executable, "-c", program], tmp_path)
    del ballast
    assert 0.3 < seconds < 5
    assert 0.3 < memory < 0.6


def test_a_command_that_fails_is_no_time(tmp_path):
    with pytest.raises(SystemExit, match="failed"):
        bench.measure("false", tmp_path)


def test_the_table_takes_the_place_of_the_old_one():
    readme = (PROJECT / "README.md").read_text()
    assert readme.count("<!-- bench -->") == readme.count("<!-- /bench -->") == 1
