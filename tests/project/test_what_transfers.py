"""Test the page of the study in benchmarks/what_transfers."""

import pytest

from tests.support import documents


@pytest.fixture(scope="module")
def page():
    return documents.functions("benchmarks/what_transfers/page.py")


def test_the_page_is_made_from_the_saved_results(page, tmp_path):
    text = page["page"](page["RESULTS"], tmp_path / "figures")
    assert text == page["PAGE"].read_text(encoding="utf-8")
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert made == sorted(path.name for path in page["FIGURES"].iterdir())


def test_saved_results_are_small(page):
    assert sum(path.stat().st_size for path in page["RESULTS"].rglob("*.*")) < 2e6


def test_a_table_of_the_report_loses_columns(page, tmp_path):
    file = tmp_path / "table.md"
    file.write_text("# Title\n\nText.\n\n| mode | task | a |\n| --- | --- | ---: |\n| x | y |  |\n")
    assert page["table"](file) == ["| mode | a |", "| --- | ---: |", "| x |  |"]
