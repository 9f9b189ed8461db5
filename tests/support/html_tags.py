"""A parser that collects the tags of a page."""

from html.parser import HTMLParser

from classification.report import figures
from classification.report import page as report_page
from classification.report.page_runs import PageRuns
from classification.report.sections import Section

NONE = PageRuns([], {}, [], 0)


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


def render(*sections: Section, runs: PageRuns = NONE, problems=(), files=()) -> str:
    drawings = {
        figure.name: figures.inline(figures.draw(figure)[0], figure.title)
        for section in sections
        for figure in section.figures
    }
    return report_page.render([], list(sections), drawings, runs, list(problems), list(files))
