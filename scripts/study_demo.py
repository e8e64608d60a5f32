"""Run the study of study.demo.yaml on made-up images, in study-demo/, and leave the checkout as it is.

DVC's experiments need git, so the folder is a repository of its own; a second run does only what is missing.
"""

import shutil
import subprocess
import sys

from scripts import PROJECT
from scripts.demo import DVC, prepare

FOLDER = PROJECT / "study-demo"
OVERRIDES = {
    "data": {"source": "phantom", "phantom_patients": 24},
    "audit": {"patients": "data/raw/patients.csv"},
    "preprocess": {"size": 48},
    "split": {"folds": 3, "validation_folds": 3},
    "lr_range": {"steps": 10},
    "train": {
        "channels": [8, 16],
        "epochs": 2,
        "batch_size": 16,
        "device": "cpu",
        "precision": "float32",
        "threads": 1,
    },
    "evaluate": {"device": "cpu", "threads": 1},
}


def git(*arguments: str) -> int:
    """Run git in the folder; return its exit status."""
    return subprocess.run(["git", *arguments], cwd=FOLDER, check=False).returncode


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    git("init", "--quiet")  # changes nothing where there is one
    # Whoever has given git no name has one here.
    git("config", "user.name", "study")
    git("config", "user.email", "study@localhost")
    if not (FOLDER / ".dvc" / "config").exists():
        subprocess.run([*DVC, "init", "--quiet", "--force"], cwd=FOLDER, check=True)
    shutil.copy(PROJECT / ".dvc" / "config", FOLDER / ".dvc" / "config")
    prepare(FOLDER, OVERRIDES)
    (FOLDER / "docs").mkdir(exist_ok=True)
    for name in (".gitignore", "docs/study.md"):
        shutil.copy(PROJECT / name, FOLDER / name)
    shutil.copy(PROJECT / "study.demo.yaml", FOLDER / "study.yaml")
    git("add", "--all", "--", ".", ":!metrics", ":!plots")
    if git("diff", "--cached", "--quiet"):
        git("commit", "--quiet", "--message", "The project on made-up images")
    command = [sys.executable, "-m", "braintumor.study", *sys.argv[1:]]
    code = subprocess.run(command, cwd=FOLDER, check=False).returncode
    if code == 0 and "--list" not in sys.argv:
        print(
            f"All of it is in {FOLDER.name}/: metrics/study.csv, plots/study, docs/study.md. "
            "Two epochs on made-up images show that the study runs, and nothing more."
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
