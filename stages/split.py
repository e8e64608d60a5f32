"""Say which images train, validate and test."""

from pathlib import Path

from braintumor.params import load_params
from braintumor.split import assign_subsets, describe_subsets, kept_together
from braintumor.tables import TESTING, read_table, write_table
from stages import run


def main(manifest: Path, split: Path) -> None:
    params = load_params(Path("params.yaml")).split
    table = read_table(manifest)
    # The table keeps its groups, of people where they are known, whose images are not independent however the cut
    # is made.
    cut = kept_together(table, params.group_by)
    if params.protocol not in ("grouped", "source") and TESTING not in set(table["folder"]):
        print(f"no Testing folder: fold {params.fold} of {params.folds} is the test set")
    table["subset"] = assign_subsets(
        cut, params.protocol, params.folds, params.fold, params.validation_folds, params.seed, params.source
    )
    write_table(table[["path", "class", "copy_group", "patient", "group", "subset"]], split)
    print(describe_subsets(table))


if __name__ == "__main__":
    run(main)
