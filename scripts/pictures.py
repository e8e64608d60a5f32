"""Draw the README's pictures: docs/phantoms.png, and docs/report.png of the report that `make demo` has made.

Needs Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from braintumor import plots
from braintumor.images import read_image, resize_square
from braintumor.phantom import CLASSES, make_phantom
from scripts import PROJECT

REPORT = PROJECT / "demo" / "report" / "index.html"


def draw_phantoms(file: Path) -> None:
    """Draw six made-up slices of each class."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "phantom"
        make_phantom(target, patients=24, seed=3)
        rows = [
            [(resize_square(read_image(file).grey, 192, letterbox=True), "") for file in files[:30:5]]
            for files in (sorted((target / "Training" / label).iterdir()) for label in CLASSES)
        ]
    plots.save(plots.sheet(rows, "Made-up slices", list(CLASSES)), file)


def photograph(page: Path, file: Path) -> None:
    """Take a picture of a page's first screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        screen = browser.new_page(viewport={"width": 1200, "height": 860})
        screen.goto(page.as_uri())
        screen.screenshot(path=file)
        browser.close()


def main() -> None:
    if not REPORT.exists() or not shutil.which("chromium"):
        sys.exit(f"error: run make demo first, which makes {REPORT}, and install Chromium")
    draw_phantoms(PROJECT / "docs" / "phantoms.png")
    photograph(REPORT, PROJECT / "docs" / "report.png")


if __name__ == "__main__":
    main()
