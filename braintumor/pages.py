"""Tables that a script writes into a page of Markdown."""

import re
from pathlib import Path

from braintumor.files import replacing_file


def fill(page: str, name: str, text: str) -> str:
    """Put lines between the marks of a name, ``<!-- name -->`` and ``<!-- /name -->``, where the page has them."""
    place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    return place.sub(lambda _: f"{text.rstrip()}\n" if text else "", page)


def fill_file(file: Path, tables: dict[str, str]) -> None:
    """Put lines between the marks of their names in a page, written whole or not at all; see `fill`."""
    page = file.read_text(encoding="utf-8")
    for name, text in tables.items():
        page = fill(page, name, text)
    with replacing_file(file) as beside:
        beside.write_text(page, encoding="utf-8")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
