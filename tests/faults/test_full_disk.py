"""Full disks and read-only folders: one-line errors, no lost data, and runs resume later."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from classification.journal import Journal
from classification.study import __main__ as study
from classification.study.execute import state
from classification.study.file import read_study
from classification.transfer import __main__ as transfer
from robust_backbones.checkpoint.io import load_file
from robust_backbones.commands import convert, train
from robust_backbones.core import results
from robust_backbones.core.errors import UserError, user_errors
from robust_backbones.detection.data import digit_scenes
from tests.support import ROOT
from tests.support.detector_runs import overrides
from tests.support.disk_runs import pretraining, refused
from tests.support.study_runs import allow, toy
from tests.support.transfer_runs import TINY, write_network

MB = 1 << 20


class Disk:
    """A file system of 400 MB in memory."""

    def __init__(self, path: Path):
        self.path, self._filler = path, path / "filler"

    def leave(self, size: int) -> None:
        """Fill the disk except for this number of bytes."""
        self._filler.unlink(missing_ok=True)
        status = os.statvfs(self.path)
        with open(self._filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - size)

    def empty(self) -> None:
        self._filler.unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.path], check=True)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", path],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


def _transfer(place, weights, *options):
    transfer.main([*TINY, "--weights", str(weights), "--output", str(place / "run"), *options])
    return place / "run" / "result.json"


def _finetune(place, weights):
    return _transfer(
        place,
        weights,
        "--mode",
        "full-network",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
        "--save-seconds",
        "0",
    )


def _convert(place, weights):
    convert.main([str(weights.with_name("resnet18.pth")), str(place / "b.pth"), "--force"])
    return place / "b.pth"


def _detect(place, weights):
    keys = overrides(
        place / "run",
        weights.with_name("backbone.pth"),
        **{
            "SOLVER.MAX_ITER": "2",
            "SOLVER.CHECKPOINT_PERIOD": "1",
            "INPUT.MIN_SIZE_TRAIN": "(64,)",
            "INPUT.MIN_SIZE_TEST": "64",
            "DATALOADER.NUM_WORKERS": "0",
            "DATASETS.TEST": "()",
        },
    )
    train.main(["--config", str(ROOT / "configs/digits_mask_rcnn_robust.yaml"), "--resume", *keys])
    return place / "run" / "model_final.pth"


def _scenes(place, weights):
    with user_errors():
        return digit_scenes.ensure()


# Free bytes, file named in the error, and earlier file that must remain.
FULL = {
    "pretraining": (pretraining, 16 * MB, "run/checkpoint.pt", "run/checkpoint.pt"),
    "full network": (
        _finetune,
        16 * MB,
        "run/trial0/final_lr0.01/checkpoint.pt",
        "run/trial0/final_lr0.01/checkpoint.pt",
    ),
    "features": (_transfer, MB // 10, "cache/features/", None),
    "its result": (_transfer, 310_000, "run/", None),
    "conversion": (_convert, 20 * MB, "b.pth", None),
    "detector": (_detect, 130 * MB, "run/model_0000001.pth", "run/model_0000000.pth"),
    "scenes": (_scenes, 20_000, "cache/digit_scenes_v2", None),
}


@pytest.fixture
def inputs(tmp_path, monkeypatch, resnet18_file, resnet18_backbone):
    """A small network in a file, and others in the same folder. The cache is on the disk."""
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "disk" / "cache"))
    shutil.copy(resnet18_file, tmp_path / "resnet18.pth")
    shutil.copy(resnet18_backbone, tmp_path / "backbone.pth")
    return write_network(tmp_path / "small.pt", "shufflenet_v2_x1_0")


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_told_of_and_after_it_has_room_the_run_goes_on(
    disk, inputs, monkeypatch, pytestconfig, capfd, case
):
    start, room, named, kept = FULL[case]
    if case == "detector":  # the folder of the scenes is set
        monkeypatch.setenv("ROBUST_BACKBONES_CACHE", pytestconfig.cache_folder.name)
    if case == "scenes":
        monkeypatch.setattr(digit_scenes, "SPLITS", {"train": 30, "val": 2})
    disk.leave(room)
    line = refused(capfd, start, disk.path, inputs)
    if case == "features":  # their size is known beforehand
        assert f"{disk.path / named}" in line and " MB of the disk are free" in line
    else:
        assert f"cannot write {disk.path / named}" in line and "No space left on device" in line
    assert not [p for p in disk.path.rglob(".*") if p.suffix in (".tmp", ".partial")]
    if kept:
        load_file(disk.path / kept)
        assert " The old file is unchanged" in line or kept != named
    disk.empty()
    assert start(disk.path, inputs).exists()


def test_what_is_written_beside_checkpoints_on_a_full_disk(disk):
    journal = Journal(disk.path / "journal.jsonl", {"seed": 1})
    journal.add({"batch": 0})
    old = results.write(
        disk.path / "result.json",
        kind="pretrain",
        metrics={},
        settings={},
        weights_sha256=None,
        data={},
        seed=0,
        seconds=0,
        device="cpu",
    )
    disk.leave(0)
    with pytest.raises(UserError, match="cannot write .*/journal.jsonl: No space left on device"):
        for batch in range(1000):  # until its page of memory is full
            journal.add({"batch": batch})
    with pytest.raises(UserError, match="result.json: No space .*. The old file is unch"):
        results.write(
            disk.path / "result.json",
            kind="pretrain",
            metrics={},
            settings={},
            weights_sha256=None,
            data={},
            seed=1,
            seconds=0,
            device="cpu",
        )
    assert json.loads((disk.path / "result.json").read_text()) == json.loads(json.dumps(old))
    disk.empty()
    journal.add({"batch": "last"})
    found = Journal(disk.path / "journal.jsonl", {"seed": 1}).records
    assert found == journal.records and len(found) > 100


def test_a_study_on_a_full_disk_ends_and_goes_on(disk, monkeypatch, capfd):
    allow(monkeypatch)
    file = toy(disk.path, 2)
    disk.leave(0)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        study.main(["run", str(file), "--num-gpus", "0", "--pause", "0.05"])
    assert stop.value.code == 2
    err = capfd.readouterr().err
    assert err.count("failed: toy, ") == 2 and err.count("run.json: No space left on device") == 2
    disk.empty()
    study.main(["retry", str(file), "--num-gpus", "0"])
    assert [state(run)[0] for run in read_study(file)] == ["finished"] * 2


def test_a_log_on_a_full_disk_is_told_of_in_one_line(capfd):
    with pytest.raises(SystemExit) as stop, user_errors(), open("/dev/full", "w") as file:
        print("x", file=file, flush=True)
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: cannot write a file of this run: No space left on device")


@pytest.mark.parametrize("case", ["pretraining", "features", "conversion", "detector", "scenes"])
def test_a_read_only_folder_is_told_of(disk, inputs, monkeypatch, pytestconfig, capfd, case):
    if case == "detector":
        monkeypatch.setenv("ROBUST_BACKBONES_CACHE", pytestconfig.cache_folder.name)
    disk.remount("ro")
    line = refused(capfd, FULL[case][0], disk.path, inputs)
    assert f"cannot write {disk.path}" in line and "Read-only file system" in line


def test_a_read_only_cache_is_told_of(disk, inputs, tmp_path, capfd):
    disk.remount("ro")
    line = refused(capfd, _transfer, tmp_path, inputs)
    assert f"cannot write {disk.path}/cache/features/" in line
    assert "Read-only file system. Set ROBUST_BACKBONES_CACHE to another folder." in line
