"""Tables of the documents that tests generate by running the cases."""

import os
from collections.abc import Sequence

from tests.support.documents import ROOT


def check_table(page: str, name: str, rows: Sequence[Sequence[str]]) -> None:
    """Compare a table of a page with the rows that a test found.

    The table stands between `<!-- table NAME -->` and `<!-- end NAME -->`. With
    `WRITE_TABLES=1` in the environment it is written instead.

    Args:
        page: path of the page, relative to the root of the project.
        name: name of the table in the two comments.
        rows: cells of each row. The first row is the header.
    """
    path = ROOT / page
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- table {name} -->\n")
    written, end, after = rest.partition(f"<!-- end {name} -->")
    assert start and end, f"{page} has no table {name}"
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    found = "\n" + "\n".join(lines) + "\n\n"
    if os.environ.get("WRITE_TABLES") == "1":
        path.write_text(before + start + found + end + after, encoding="utf-8")
    else:
        assert written == found, f"{page}: run this test with WRITE_TABLES=1 to update the table"
