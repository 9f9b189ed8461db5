"""The site: every link and anchor leads somewhere, and no page asks another host."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.support import documents
from tests.support.documents import ROOT

OUTSIDE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_links_and_anchors_lead_somewhere(site):
    """MkDocs stops at a broken one (--strict); here it is only looked whether there are pages."""
    names = {path.name for path in site.rglob("*.html")}
    assert {f"{page.stem}.html" for page in documents.PAGES[1:]} <= names
    assert (site / "search/search_index.json").stat().st_size > 100_000


def test_no_page_asks_another_host(site):
    found = {
        path.name: OUTSIDE.findall(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }
    assert not {name: links for name, links in found.items() if links}
    assert "@import" not in "".join(p.read_text() for p in site.rglob("*.css"))


def test_a_notebook_is_a_page_with_its_pictures_and_can_be_downloaded(site):
    name = "robust_backbone_in_your_detectron2_project"
    text = (site / f"notebooks/{name}.html").read_text(encoding="utf-8")
    assert (site / f"notebooks/{name}.ipynb").is_file()
    assert f'href="{name}.ipynb" download' in text
    for picture in re.findall(rf'src="({name}_\d\.jpeg)"', text):
        assert (site / "notebooks" / picture).stat().st_size > 1000
    assert 'href="../detection.html#in-your-own-detectron2-project"' in text


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"(\S+\.md)$", text, re.M)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in documents.PAGES[1:]]
    notebooks = [f"notebooks/{path.stem}.md" for path in documents.NOTEBOOKS]
    assert sorted(listed) == sorted([*pages, *notebooks])
    assert yaml.safe_load(text)["theme"]["font"] is False


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_no_page_is_too_long_to_be_read(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 300


def test_links_of_the_readme_lead_somewhere():
    """It is not part of the site; anchors are those of GitHub."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        assert (ROOT / path).exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
