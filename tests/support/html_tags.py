"""A parser that collects the tags of a page."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from classification.report import figures, page_runs, records
from classification.report import page as report_page
from classification.report.page_runs import Runs
from classification.report.sections import Section
from tests.support import report_parts

NONE = Runs([], {}, [], 0)


class Tags(HTMLParser):
    """All tags with their attributes, in order, and the text of each kind of script."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.scripts = [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            kind = self.found[-1][1].get("type", "code")
            self.scripts[kind] = self.scripts.get(kind, "") + data


def render(*sections: Section, runs: Runs = NONE, problems=(), files=()) -> str:
    drawings = {
        figure.name: figures.inline(figures.draw(figure)[0], figure.title)
        for section in sections
        for figure in section.figures
    }
    return report_page.render(list(sections), drawings, runs, list(problems), list(files))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    for k in range(3):
        report_parts.result(root / f"run{k}", lr=k / 10, seed=k)
    for name in ("curves.png", "trial0/final_lr1/curves.png", "trial0/choosing_lr1/curves.png"):
        (root / "run1" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / "run1" / name)
    (root / "run2" / "curves.png").write_text("<script>")
    report_parts.hostile_result(root / "run3")
    return records.read([root])[0]


@pytest.fixture(scope="module")
def page(found):
    files = ["tables/table1.csv", "figures/table1_bars.svg", "figures/table1_bars.png"]
    return render(
        report_parts.section(4),
        runs=page_runs.gather(found),
        files=files,
        problems=[f"A file {report_parts.HOSTILE}."],
    )
