"""The documentation site: links and anchors resolve, and pages load nothing from other hosts."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from tests.support import documents
from tests.support.documents import ROOT

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="zensical needs Python 3.11")
OUTSIDE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+"')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built from a copy of this tree."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("zensical.toml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("robust_backbones", "classification"):
        (folder / name).symlink_to(ROOT / name)
    build = [sys.executable, "docs/build.py"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built(site):
    """A broken link or anchor fails the build (--strict)."""
    built = {
        path.relative_to(site / "output/site").as_posix()
        for path in (site / "output/site").rglob("*.html")
    }
    assert {page.replace(".md", ".html") for page in pages()} <= built
    assert (site / "output/site/search.json").stat().st_size > 100_000


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse prints options differently")
@pytest.mark.parametrize(
    "page", ["results/model_zoo.md", "reference/commands.md", "reference/config_keys.md"]
)
def test_generated_pages_are_up_to_date(site, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == (site / "docs" / page).read_text(encoding="utf-8"), "run: make docs"


def test_no_page_loads_from_another_host(site):
    found = {
        path.name: OUTSIDE.findall(path.read_text(encoding="utf-8"))
        for path in (site / "output/site").rglob("*.html")
    }
    assert not {name: links for name, links in found.items() if links}
    assert "@import" not in "".join(p.read_text() for p in (site / "output/site").rglob("*.css"))


@pytest.mark.parametrize("notebook", documents.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_its_pictures_and_can_be_downloaded(site, notebook):
    folder = (site / "output/site" / notebook.relative_to(ROOT / "docs")).parent
    text = (folder / f"{notebook.stem}.html").read_text(encoding="utf-8")
    assert (folder / notebook.name).is_file()
    assert f'href="{notebook.name}" download' in text
    pictures = re.findall(rf'src="({notebook.stem}_files/[^"]+)"', text)
    assert pictures and all((folder / name).stat().st_size > 1000 for name in pictures)


def pages() -> list[str]:
    """Return all pages of the site, relative to its root."""
    found = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    found += [p.relative_to(ROOT / "docs").with_suffix(".md") for p in documents.NOTEBOOKS]
    found += [Path("development/changelog.md"), Path("development/contributing.md")]
    return sorted(path.as_posix() for path in found)


def test_every_page_is_in_the_navigation():
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(_paths(project["nav"])) == pages()


def _paths(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [
        path for part in (nav.values() if isinstance(nav, dict) else nav) for path in _paths(part)
    ]


def test_links_of_pages_outside_the_site_resolve():
    """Anchors are those that GitHub generates."""
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
            assert (ROOT / path).exists(), path
            if anchor:
                titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.M)
                anchors = [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
                assert anchor in anchors, f"{page}: {path}#{anchor}"
