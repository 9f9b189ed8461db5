"""Results of a study in object storage."""

import json
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from classification.study import __main__ as study
from classification.study.file import read_study
from classification.study.storage import Store
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
    study.main(["run", str(file), "--gpus", "0"])
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
    study.main(["run", str(file), "--gpus", "0"])
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


def test_a_store_that_cannot_be(tmp_path, capsys):
    file = toy(tmp_path, 1)
    file.write_text(file.read_text().replace(str(tmp_path / "out"), "nowhere://x/y"))
    with pytest.raises(SystemExit) as stop:
        study.main(["status", str(file)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "output nowhere://x/y: cannot be accessed (" in err
