"""Tables that a script writes into a page of Markdown."""

import re


def fill(page: str, name: str, text: str) -> str:
    """Put lines between the marks of a name, ``<!-- name -->`` and ``<!-- /name -->``, where the page has them."""
    place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    return place.sub(lambda _: f"{text.rstrip()}\n" if text else "", page)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
