"""Draw the README's picture of made-up slices: docs/phantoms.png."""

import tempfile
from pathlib import Path

from braintumor import plots
from braintumor.images import read_image, resize_square
from braintumor.phantom import CLASSES, make_phantom
from scripts.demo import PROJECT


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "phantom"
        make_phantom(target, patients=24, seed=3)
        rows = [
            [(resize_square(read_image(file).grey, 192, letterbox=True), "") for file in files[:30:5]]
            for files in (sorted((target / "Training" / label).iterdir()) for label in CLASSES)
        ]
    plots.save(plots.sheet(rows, "Made-up slices", list(CLASSES)), PROJECT / "docs" / "phantoms.png")


if __name__ == "__main__":
    main()
