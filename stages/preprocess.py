"""Turn every usable image into one grey square: row i of the array is row i of the manifest."""

from pathlib import Path

from braintumor.images import load_squares
from braintumor.params import load_params
from braintumor.tables import read_table
from stages import run, workers


def main(raw: Path, manifest: Path, images: Path) -> None:
    params = load_params(Path("params.yaml")).preprocess
    files = [raw / path for path in read_table(manifest)["path"]]
    load_squares(files, images, params.size, params.crop, params.fit == "letterbox", workers())


if __name__ == "__main__":
    run(main)
