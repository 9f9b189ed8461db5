"""Downloads by torchvision from a local server, and their failures."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torchvision.datasets as tv

from classification.datasets import fetch as fetching
from classification.datasets.__main__ import TABLES, main
from classification.datasets.fetch import fetch, manual_instructions
from classification.datasets.open import open_split
from classification.datasets.specs import DATASETS, SUITE
from robust_backbones.core.errors import UserError
from tests.support import ROOT
from tests.support.miniature_tasks import use, write
from tests.support.web import serve

DOCS = ROOT / "docs/reference/datasets.md"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Yield a folder and the URL of a server for its files."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with serve(folder) as url:
        yield folder, url


def pack(folder, archive):
    """Pack the contents of a folder as tar.gz; return its MD5."""
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted(folder.iterdir()):
            file.add(path, path.name)
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.fixture
def served_dtd(server, monkeypatch, tmp_path):
    row = use(monkeypatch, "dtd", tmp_path / "origin")
    digest = pack(tmp_path / "origin" / "dtd" / "dtd", server[0] / "dtd.tar.gz")
    monkeypatch.setattr(tv.DTD, "_URL", f"{server[1]}/dtd.tar.gz")
    monkeypatch.setattr(tv.DTD, "_MD5", digest)
    return row


def test_download_with_torchvision(served_dtd, tmp_path, capsys):
    root = tmp_path / "data"
    (root / "dtd").mkdir(parents=True)  # an empty folder does not block the download
    main(["fetch", "dtd", "--data", str(root)])
    assert capsys.readouterr().out.split()[-1] == str(root / "dtd")
    origin = open_split("dtd", "train", tmp_path / "origin")
    assert open_split("dtd", "train", root).fingerprint() == origin.fingerprint()
    assert sorted(p.name for p in root.iterdir() if p.name != ".dtd.lock") == ["dtd"]


def test_complete_data_is_not_downloaded_again(served_dtd, monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, "_download", None)
    assert fetch("dtd", tmp_path / "origin") == tmp_path / "origin" / "dtd"


def test_aircraft_from_a_server(server, monkeypatch, tmp_path):
    use(monkeypatch, "aircraft", tmp_path / "origin")
    pack(tmp_path / "origin" / "aircraft", server[0] / "fgvc-aircraft-2013b.tar.gz")
    monkeypatch.setattr(tv.FGVCAircraft, "_URL", f"{server[1]}/fgvc-aircraft-2013b.tar.gz")
    fetch("aircraft", tmp_path / "data")
    assert len(open_split("aircraft", "test", tmp_path / "data")) == 6


def test_an_interrupted_download_starts_from_scratch(served_dtd, tmp_path):
    left = tmp_path / "data" / ".dtd.partial" / "dtd" / "dtd"  # complete, according to torchvision
    left.mkdir(parents=True)
    fetch("dtd", tmp_path / "data")
    assert len(open_split("dtd", "test", tmp_path / "data")) == 6


def test_a_damaged_archive_leaves_no_folder(served_dtd, server, tmp_path):
    archive = server[0] / "dtd.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(UserError, match="could not download dtd .*corrupted.*\nPut the files here"):
        fetch("dtd", tmp_path / "data")
    assert not (tmp_path / "data" / "dtd").exists()


def test_wrong_counts_leave_no_folder(served_dtd, monkeypatch, tmp_path):
    row = type(served_dtd)(**(vars(served_dtd) | {"images": {"train": 13}}))
    monkeypatch.setitem(DATASETS, "dtd", row)
    with pytest.raises(UserError, match="found 12 train images, but dtd has 13"):
        fetch("dtd", tmp_path / "data")
    assert not (tmp_path / "data" / "dtd").exists()


def test_incomplete_data_is_not_overwritten(served_dtd, tmp_path):
    labels = tmp_path / "origin" / "dtd" / "dtd" / "dtd" / "labels"
    shutil.rmtree(labels)
    with pytest.raises(UserError, match="dtd exists but is incomplete: .*lacks labels/train1.txt"):
        fetch("dtd", tmp_path / "origin")


@pytest.mark.parametrize("name", [n for n, row in DATASETS.items() if row.needs_root])
def test_manual_instructions(name, tmp_path):
    row, text = DATASETS[name], manual_instructions(name, tmp_path)
    assert row.manual_download in text and str(tmp_path / name) in text
    assert row.homepage.startswith("https://") or name == "folder"
    assert f"robust-backbones datasets check {name} --data {tmp_path}" in text
    assert not row.torchvision or hasattr(tv, row.torchvision)


@pytest.mark.parametrize("name", ["cars", "birdsnap", "sun397"])
def test_printed_paths_are_the_ones_that_are_read(name, tmp_path):
    write(name, tmp_path)
    text = manual_instructions(name, tmp_path)
    printed = [Path(line.strip()) for line in text.splitlines() if line.startswith("  /")]
    assert len(printed) >= 4
    if name == "sun397":  # Partitions.zip may be unpacked in several places
        for file in (tmp_path / "sun397" / "Partitions").iterdir():
            shutil.move(file, tmp_path / "sun397" / "SUN397")
    assert all(path.exists() for path in printed)


def test_the_command_continues_after_a_failure(served_dtd, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fetch", "cars", "digits", "dtd", "--data", str(tmp_path / "data")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and (tmp_path / "data" / "dtd").is_dir()
    assert (
        "cars: cars has no automatic download. Manual download: its server has been offline" in err
    )
    assert "digits is part of an installed package and needs no download." in out
    assert "error: cars: not downloaded. See the messages above." in err


def test_list_equals_the_table_in_the_docs(capsys):
    main(["list"])
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in DATASETS) and set(SUITE) <= set(DATASETS)
    main(["list", "--markdown"])
    tables = capsys.readouterr().out
    assert tables.count("\n\n") == len(TABLES) - 1 and tables in DOCS.read_text()


def test_list_does_not_import_torch():
    code = "from classification.datasets.__main__ import main; import sys; main(['list']); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
