"""Compare two runs on their common test images: ``python -m braintumor.compare REV_A REV_B``.

A revision is whatever git or DVC calls by a name: a commit, a branch, a tag, an experiment; ``workspace`` is what
lies in the checkout now.
"""

import argparse
import io
import sys
from pathlib import Path

import dvc.api
import pandas as pd
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from braintumor.errors import UserError
from braintumor.paired import compare_pairs, describe_comparison
from braintumor.params import load_params
from braintumor.tables import read_table

PREDICTIONS = "data/predictions.csv"
WORKSPACE = "workspace"


def read_predictions(revision: str, file: str = PREDICTIONS) -> pd.DataFrame:
    """Read the predictions of a revision from git and DVC's cache, or those of the checkout.

    Raises
    ------
    UserError
        If there is no such revision, or its predictions are neither in the cache nor in a remote.
    """
    if revision == WORKSPACE:
        if not Path(file).exists():
            raise UserError(f"{file}: is not in the checkout; make it with dvc repro evaluate or dvc checkout")
        return read_table(Path(file))
    try:
        text = dvc.api.read(file, rev=revision, encoding="utf-8")
    except SCMError:
        raise UserError(f"{revision}: neither git nor DVC knows such a revision or experiment") from None
    except (DvcException, OSError):
        raise UserError(
            f"{revision}: its {file} is not in DVC's cache; run dvc fetch, or that revision again, to have it"
        ) from None
    return read_table(io.StringIO(text))


def match(a: pd.DataFrame, b: pd.DataFrame, name_a: str, name_b: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put two tables of predictions in one order, by path.

    Raises
    ------
    UserError
        If they are of different images, or say that an image is of different classes.
    """
    a, b = (table.set_index("path").sort_index() for table in (a, b))
    for one, other, name in ((a, b, name_a), (b, a, name_b)):
        extra = one.index.difference(other.index)
        if len(extra):
            raise UserError(
                f"{name_a} and {name_b} are tested on different images, {len(a)} and {len(b)}: {len(extra)} are "
                f"tested by {name} only, such as {extra[0]}; compare runs of the same split"
            )
    differing = a.index[a["class"] != b["class"]]
    if len(differing):
        raise UserError(f"{name_a} and {name_b} file {len(differing)} images differently, such as {differing[0]}")
    return a, b


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m braintumor.compare", description=__doc__.splitlines()[0])
    parser.add_argument("rev_a", help="git revision, DVC experiment or workspace")
    parser.add_argument("rev_b", help="another one")
    revisions = parser.parse_args(arguments)
    try:
        params = load_params(Path("params.yaml")).evaluate
        names = revisions.rev_a, revisions.rev_b
        a, b = match(*(read_predictions(name) for name in names), *names)
        rights = [(table["class"] == table["prediction"]).to_numpy() for table in (a, b)]
        result = compare_pairs(*rights, a["group"].to_numpy(), params.resamples, params.seed)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(describe_comparison(result, *names))


if __name__ == "__main__":
    main()
