"""The page of a report without a browser: what is in it, and that no text of a result acts."""

import base64
import csv
import hashlib
import json
import math
import re

import pytest
from PIL import Image

from classification.report import page_runs, records
from classification.report.page_runs import PageRuns
from classification.report.sections import Column, Section
from tests.support import report_parts
from tests.support.html_tags import Tags, render


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
        runs=page_runs.collect_runs(found),
        files=files,
        problems=[f"A file {report_parts.HOSTILE}."],
    )


def test_no_text_of_a_result_is_a_tag(page):
    tags = Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 2
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert "img" not in {tag for tag, _ in tags}
    assert page.count("&lt;script&gt;") >= 7  # title, text, warning, row, problem, figure ...


def test_the_only_script_that_may_run_is_ours_and_nothing_is_fetched(page):
    tags = Tags(page)
    policy = next(
        attrs["content"]
        for tag, attrs in tags.found
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(tags.scripts["code"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    addresses = [
        attrs.get("href", attrs.get("src", ""))
        for tag, attrs in tags.found
        if tag in ("a", "link", "script", "iframe", "object")
    ]
    assert not [a for a in addresses if ":" in a]
    assert {"tables/table1.csv", "figures/table1_bars.svg"} <= set(addresses)


def test_the_runs_are_in_it_once(page, found):
    data = json.loads(Tags(page).scripts["application/json"])
    assert [row["path"] for row in data["rows"]] == [str(record.path) for record in found]
    assert data["rows"][3]["dataset"] == report_parts.HOSTILE
    assert data["rows"][0]["metrics"]["trials"][2] == (
        {"seed": 2, "accuracy": 92.5, "chosen": {"lr": 0.01}}
    )
    assert data["common"]["probe"] == "sgd" and data["rows"][1]["settings"]["lr"] == 0.1
    assert data["rows"][0]["mean"] == 91.1667


def test_what_lies_beside_a_result(found):
    rows = page_runs.collect_runs(found).rows
    assert [name for name, _ in rows[1]["pictures"]] == [
        "curves.png",
        "trial0/final_lr1/curves.png",
    ]
    assert rows[1]["pictures"][0][1].startswith("data:image/png;base64,")
    assert "pictures" not in rows[0] and "pictures" not in rows[2]  # there it is no picture
    runs = page_runs.collect_runs(found)
    assert runs.classes[rows[0]["classes"]] == [["cifar10 a", 100], ["cifar10 b", 100], ["c", 0]]
    assert rows[0]["recalls"] == [90.0, 20.0, None]
    assert rows[0]["classes"] == rows[2]["classes"] and len(runs.classes) == 2


def test_what_is_too_much_stays_where_it_is(found, monkeypatch):
    monkeypatch.setattr(page_runs, "MAX_PICTURE_BYTES", 10)
    monkeypatch.setattr(page_runs, "MAX_RECALLS", 6)
    rows = page_runs.collect_runs(found).rows
    assert rows[1]["skipped_pictures"][0] == "curves.png" and "pictures" not in rows[1]
    assert "recalls" in rows[1] and rows[2]["skipped_classes"] == "per_class.csv"


@pytest.mark.parametrize(
    "text",
    ["", "class,images\na,1\n", "class,images,right,recall_percent\na,one,1,x\n", "\x00", "\ud800"],
)
def test_a_strange_per_class_file_is_passed_over(tmp_path, text):
    report_parts.result(tmp_path)
    (tmp_path / "per_class.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert not page_runs.collect_runs(records.read([tmp_path])[0]).rows[0].get("recalls")


def test_numbers_that_json_does_not_have(tmp_path):
    report_parts.result(tmp_path)
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace('"probe": "sgd"', '"probe": NaN'))
    found = records.read([path])[0]
    page = render(report_parts.section(1), runs=page_runs.collect_runs(found))
    assert json.loads(Tags(page).scripts["application/json"])["rows"][0]["settings"]["probe"] == (
        "nan"
    )


def test_tables_without_numbers_are_only_named():
    empty = Section("figure9", "Figure 9", [], [Column("a")], [{}], wanted=12)
    page = render(report_parts.section(), empty)
    assert "Tables and figures without a number yet: 1" in page and "Figure 9: 0 of 12" in page
    assert 'id="figure9"' not in page and 'id="table1"' in page


def test_simulated_results_are_called_so_loudly():
    runs = PageRuns([{"path": "a"}, {"path": "b"}], {}, [], simulated=1)
    page = render(runs=runs)
    assert "<title>SIMULATED: " in page and 'body class="simulated"' in page
    assert re.search(r"<strong>SIMULATED</strong> 1 of 2 results\s+were made up", page)
    assert "SIMULATED: " not in render()


def test_rounded():
    assert page_runs.rounded({"x": 1.23456789, "y": 1.23456789e-5, "z": (math.inf, None)}) == {
        "x": 1.2346,
        "y": 1.23457e-05,
        "z": ["inf", None],
    }


def test_the_csv_of_report_parts_is_what_transfer_writes(found):
    with open(found[0].path.parent / "per_class.csv", newline="") as file:
        assert next(csv.reader(file)) == ["class", "images", "right", "recall_percent"]
