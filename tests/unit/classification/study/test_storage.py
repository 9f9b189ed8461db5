"""Results of a study in object storage."""

import json
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from classification.report import __main__ as report
from classification.study import __main__ as study
from classification.study.file import read_study
from classification.study.storage import Store
from tests.support.report_parts import result
from tests.support.study_runs import allow, starts, toy, write


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    allow(monkeypatch)


def test_results_in_object_storage(tmp_path, monkeypatch, capsys):
    url = f"file://{tmp_path}/bucket"
    parts = [
        {"name": "a", "command": "toy", "common": {"value": "{x}"}, "axes": {"x": [0, 1]}},
        {
            "name": "b",
            "command": "toy",
            "axes": {"x": [0, 1]},
            "common": {"value": 2, "needs": "{a}/result.json"},
        },
    ]
    file = write(tmp_path / "s.yaml", json.dumps({"output": url, "parts": parts}))
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "one"))
    study.main(["run", str(file), "--num-gpus", "0"])
    assert "| 1 | 1 |" in capsys.readouterr().out
    kept = sorted(p.relative_to(tmp_path / "bucket") for p in (tmp_path / "bucket").rglob("*.json"))
    assert [path.name for path in kept] == ["result.json", "run.json"] * 4

    # Another machine that has only the bucket, in which one result is missing.
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "two"))
    runs = read_study(file)
    lost = tmp_path / "bucket" / "b" / runs[3].folder.name / "result.json"
    lost.unlink()
    study.main(["status", str(file)])
    assert "4 runs: 3 finished, 1 interrupted" in capsys.readouterr().out
    study.main(["run", str(file), "--num-gpus", "0"])
    assert capsys.readouterr().out.count("finished in") == 1 and lost.exists()
    assert len(starts(runs[0])) == 0 and len(starts(runs[3])) == 2


def test_the_result_is_sent_last(tmp_path, monkeypatch):
    """It marks the run as finished: a sender that dies before it has sent none."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    store = Store(f"file://{tmp_path}/bucket")
    folder = store.folder / "part" / "run"
    (folder / "z").mkdir(parents=True)
    for name in ("a.txt", "result.json", "run.json", "z/z.txt", ".lock"):
        (folder / name).write_text(name)
    sent, put = [], LocalFileSystem.put_file

    def watched(self, source, target, **more):
        sent.append(Path(source).name)
        return put(self, source, target, **more)

    monkeypatch.setattr(LocalFileSystem, "put_file", watched)
    store.send(folder)
    assert sorted(sent) == ["a.txt", "result.json", "run.json", "z.txt"]
    assert sent[-1] == "result.json"


def test_a_report_of_results_in_object_storage(tmp_path, monkeypatch, capsys):
    """From memory://, without the study and with it, whose folder of results is the same."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    files, folder = fsspec.filesystem("memory"), "/bucket/study/part/run"
    result(tmp_path / "made", "textures")
    files.put_file(str(tmp_path / "made/result.json"), f"{folder}/result.json")
    files.pipe_file(f"{folder}/curves.png", b"png")
    files.pipe_file(f"{folder}/checkpoint.pt", b"large")
    file = toy(tmp_path, 1)
    file.write_text(file.read_text().replace(str(tmp_path / "out"), "memory://bucket/study"))
    for url in ("memory://bucket/study", "memory://bucket/study/"):
        report.main([url, "--output", str(tmp_path / "report"), "--study", str(file)])
        assert "study: 0 of 1 numbers" in capsys.readouterr().out
        assert "textures" in (tmp_path / "report/index.html").read_text()
    local = Store("memory://bucket/study").folder
    assert sorted(path.name for path in local.rglob("*.*")) == ["curves.png", "result.json"]


def _denied(*args, **options):
    raise PermissionError(13, "Access Denied")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory://empty/study", "--output", "r"], "memory://empty/study has no files. Give the"),
        (["nowhere://x", "--output", "r"], "nowhere://x cannot be accessed (Protocol not known"),
        (["memory://denied", "--output", "r"], "memory://denied cannot be accessed (PermissionE"),
        (["x", "--output", "s3://bucket/r"], "--output: 's3://bucket/r' is a URL. Give a local"),
        (["x", "--output", "r", "--study", "s3://b/s.yaml"], "--study: 's3://b/s.yaml' is a URL"),
    ],
)
def test_reports_from_wrong_urls(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    if "denied" in arguments[0]:
        monkeypatch.setattr(MemoryFileSystem, "find", _denied)
    with pytest.raises(SystemExit) as stop:
        report.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_store_that_cannot_be(tmp_path, capsys):
    file = toy(tmp_path, 1)
    file.write_text(file.read_text().replace(str(tmp_path / "out"), "nowhere://x/y"))
    with pytest.raises(SystemExit) as stop:
        study.main(["status", str(file)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "error: nowhere://x/y cannot be accessed (" in err
