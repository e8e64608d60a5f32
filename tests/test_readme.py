"""The README's commands, as they stand there, in a clean clone on a tiny phantom set."""

import json
import re

import pytest

from tests.conftest import PROJECT
from tests.test_pipeline import make_folder

README = (PROJECT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.strip().splitlines()
]
IN_CI = ["make demo", "make test"]  # .ci/run runs these two


@pytest.mark.long
def test_its_commands_work_from_a_clean_clone(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone")
    make_folder(tmp_path / "my-images", ["."], n=60)
    # What comes after evaluate has tests of its own, and would take half of the time here.
    clone.run("dvc checkout --quiet; dvc freeze explain export report; git commit --all --quiet --message frozen")
    clone.link_venv()
    clone.env["HOME"] = str(tmp_path)
    clone.run("set -ex\n" + "\n".join(command for command in COMMANDS if command not in IN_CI))
    (show,) = (command for command in COMMANDS if command.startswith("dvc exp show "))
    columns = clone.run(f"{show} --csv").splitlines()[0].split(",")
    assert {"Experiment", "accuracy", "accuracy_distinct", "train.dropout"} <= set(columns)
    assert len(columns) < 20 and not any(column.endswith("_low") for column in columns)
    rows = json.loads(clone.run("dvc exp show --json"))
    tried = [
        experiment["revs"][0]["data"]["params"]["params.yaml"]["data"]
        for row in rows
        for experiment in row["experiments"] or []
    ]
    assert sorted(params["train"]["dropout"] for params in tried if params["split"]["protocol"] == "grouped") == [
        0.0, 0.0, 0.0, 0.0, 0.1, 0.3, 0.5,
    ]  # fmt: skip
    assert [params["train"]["dropout"] for params in tried if params["split"]["protocol"] == "official"] == [0.0]
    assert [params["data"]["source"] for params in tried].count("folder") == 3


@pytest.mark.parametrize("command", IN_CI)
def test_ci_runs_the_rest(command):
    assert command in COMMANDS
    assert re.search(rf"^[^#]*{command}", (PROJECT / ".ci/run").read_text(), re.MULTILINE)


def test_its_results_are_those_of_the_committed_run():
    scores = json.loads((PROJECT / "metrics/test.json").read_text())
    row = re.search(r"\| new people[^|]*\|(.*)\|", README)[1]
    for name in ("accuracy", "accuracy_distinct"):
        low, high = (100 * scores[f"{name}_{bound}"] for bound in ("low", "high"))
        assert f"{100 * scores[name]:.1f}% [{low:.1f}, {high:.1f}]" in row


def test_the_files_it_links_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (PROJECT / target).exists(), target
