"""The page of a report in a real browser: sorting, looking behind numbers, phone, dark mode."""

import pytest

from classification.report import figures, page_runs, records
from classification.report import page as report_page
from classification.report.answers import Answer
from classification.report.sections import Section
from classification.report.trial_variance import VariancePart
from classification.report.verdicts import Estimate, Over, judge
from tests.support import browser, report_parts

ROWS = """return Array.from(document.querySelectorAll('#table1 .sortable tbody tr'),
    row => row.cells[0].textContent.trim()[0])"""
SORTED = """return Array.from(document.querySelectorAll('#table1 .sortable thead th'),
    th => th.getAttribute('aria-sort'))"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    for k in range(150):
        report_parts.result(folder / f"run{k:03}", accuracies=(80.0 + k / 10,), lr=k)
    report_parts.hostile_result(folder / "run150")
    (folder / "seen").mkdir()
    report_parts.interpreted(folder / "seen")
    found = records.read([folder])[0]
    section = report_parts.section(151)
    drawings = {
        figure.name: figures.inline(figures.draw(figure)[0], figure.title)
        for figure in section.figures
    }
    first = Section("figure1", "Figure 1", [], [], [])
    verdicts = {
        f"a task with a long name {k}": judge(Estimate(mean, Over.TRIALS, seeds=VariancePart(1, 9)))
        for k, mean in enumerate((0.1, 5.0, -123.4))
    }
    answer = Answer("Question", "A sentence.", verdicts=verdicts)
    page = report_page.render(
        [answer],
        [section, first],
        drawings,
        page_runs.collect_runs(found),
        [report_parts.HOSTILE],
        [],
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    with browser.chromium(folder) as found:
        found.path = path
        yield found


@pytest.fixture(autouse=True)
def page(driver):
    """Opened afresh for each test; no test leaves an error in the console."""
    browser.size(driver, 1200, 900)
    driver.get(driver.path.as_uri())
    yield
    assert browser.errors(driver) == []
    assert driver.title == "Transfer report"  # the hostile result would have changed it


def click(driver, selector: str, number: int = 0) -> None:
    found = driver.find_elements("css selector", selector)[number]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    found.click()


@pytest.mark.parametrize(
    "column, up, down",
    [
        (0, "acp<", "pca<"),  # words; the hostile name differs by the collation
        (1, "<pca", "cp<a"),  # numbers, what is missing last
        (3, "pc<a", "<cpa"),
        (4, "cp<a", "<pca"),
    ],
)
def test_a_heading_sorts(driver, column, up, down):
    heading = "#table1 .sortable thead button"
    click(driver, heading, column)
    first, states = driver.execute_script(ROWS), driver.execute_script(SORTED)
    assert states[column] == "ascending" and states.count("none") == 4
    click(driver, heading, column)
    second = driver.execute_script(ROWS)
    assert driver.execute_script(SORTED)[column] == "descending"
    if column == 0:  # where punctuation stands among words is the browser's
        first, second = ([x for x in rows if x != "<"] for rows in (first, second))
        up, down = up.replace("<", ""), down.replace("<", "")
    assert "".join(first) == up and "".join(second) == down


def test_the_keyboard_sorts(driver):
    button = driver.find_elements("css selector", "#table1 .sortable thead button")[1]
    driver.execute_script("arguments[0].focus()", button)
    button.send_keys("\ue007")  # Enter
    assert driver.execute_script(SORTED)[1] == "ascending"


def test_a_number_opens_its_runs(driver):
    click(driver, "#table1 button.runs", 0)
    dialog = driver.find_element("id", "dialog")
    assert dialog.get_attribute("open") and "The 151 runs behind this number" in dialog.text
    opened = driver.find_elements("css selector", "#details > details[open]")
    assert len(opened) == 1 and "accuracy" in opened[0].text and "fixed-feature" in opened[0].text
    assert len(driver.find_elements("css selector", "#details dl")) < 10  # the others wait
    driver.execute_script("document.querySelector('#details > details:last-child').open = true")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    last = driver.find_element("css selector", "#details > details:last-child dl")
    assert report_parts.HOSTILE in last.get_attribute("textContent")
    assert not driver.find_elements("css selector", "#details img, #details script")
    dialog.send_keys("\ue00c")  # Escape
    assert not dialog.get_attribute("open")


def test_recalls_of_a_run(driver):
    click(driver, "#table1 button.runs", 1)
    assert "The run behind this number" in driver.find_element("id", "dialog").text
    click(driver, "#details details details summary")
    recalls = driver.find_element("css selector", "#details details[open] details[open] table")
    assert "cifar10 b 100 20" in recalls.text


def test_all_runs_come_a_page_at_a_time_and_can_be_filtered(driver):
    rows = "return document.querySelector('#all').tBodies[0].rows.length"
    assert driver.execute_script(rows) == 100
    click(driver, "#more")
    assert driver.execute_script(rows) == 152
    driver.find_element("id", "filter").send_keys("fixed run01")
    assert driver.execute_script(rows) == 10
    assert driver.find_element("id", "count").text == "10 of 152 runs"
    click(driver, "#all thead button", 7)
    click(driver, "#all thead button", 7)
    top = driver.find_element("css selector", "#all tbody tr")
    assert "81.90" in top.text
    top.find_element("css selector", "button.runs").click()
    assert "81.90 %" in driver.find_element("id", "details").text


def test_figure_1_shows_its_pictures(driver):
    size = "const i = document.querySelector('#figure1 img'); return [i.naturalWidth, i.alt]"
    assert driver.execute_script(size) == [40, "picture of this run: figure.png"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 1200])
def test_looks(driver, width, scheme, tmp_path):
    browser.size(driver, width, 800, scheme)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    outside = driver.execute_script("""
        return Array.from(document.querySelectorAll('body *'), node => node)
            .filter(node => !node.closest('.box, svg, dialog, script'))
            .filter(node => node.getBoundingClientRect().right > innerWidth + 1)
            .map(node => node.outerHTML.slice(0, 80))""")
    assert outside == []
    ground, ink, drawn = driver.execute_script("""
        const of = (node) => getComputedStyle(node);
        const text = document.querySelector('figure svg text');
        return [of(document.body).backgroundColor, of(document.body).color, of(text).fill]""")
    light = [sum(map(int, color[4:-1].split(","))) / 3 for color in (ground, ink, drawn)]
    bright, faint = (light[0], light[1:]) if scheme == "light" else (light[1], light[:1])
    assert bright > 200 and max(faint) < 80 and drawn == ink
    driver.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000
