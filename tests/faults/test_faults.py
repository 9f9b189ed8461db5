"""Faults: missing data, jumping clocks, a shared cache, killed commands."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from classification.pretrain import __main__ as pretrain
from classification.study.executors import Local
from classification.study.file import read_study
from classification.study.queue import Queue
from classification.training import trainer as training
from robust_backbones import weights
from robust_backbones.core.errors import UserError
from robust_backbones.detection import config
from robust_backbones.detection.data import custom, loader
from tests.support import ROOT
from tests.support.custom_data import coco
from tests.support.disk_runs import pretraining, refused
from tests.support.fake_hub import GOOD, Page
from tests.support.networks import random_network, robustness_contents
from tests.support.small_data import write_tree
from tests.support.study_runs import allow, toy


def test_runs_that_fail_without_a_note_are_not_started_for_ever(tmp_path, monkeypatch):
    allow(monkeypatch)
    runs = read_study(toy(tmp_path, 1, fails=99))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("classification.study.execute.record", full)
    queue = Queue(runs, Local(1), max_attempts=3, pause=0.01)
    assert queue.work() and list(queue.failed.values()) == ["not yet"]
    assert len((runs[0].folder / "starts.txt").read_text().split()) == 3


def test_data_that_vanish_while_a_run_trains_and_come_back(tmp_path, monkeypatch, capfd):
    data = write_tree(tmp_path / "data", {"train": 8, "test": 4})
    options = [
        "--arch",
        "shufflenet_v2_x1_0",
        "--dataset",
        "folder",
        "--data",
        str(data),
        "--image-size",
        "32",
        "--epochs",
        "3",
        "--batch-size",
        "12",
        "--lr",
        "0.01",
        "--eps",
        "0",
        "--device",
        "cpu",
        "--eval-steps",
        "1",
        "--resume",
    ]
    command = [*options, "--output", str(tmp_path / "run")]
    close, epochs = training.Training._close_epoch, []

    def closed(run):
        close(run)
        epochs.append(run.epoch)
        if epochs == [1]:
            data.rename(tmp_path / "away")

    monkeypatch.setattr(training.Training, "_close_epoch", closed)
    line = refused(capfd, pretrain.main, command)
    assert f"{data}/train/" in line and "does not exist" in line
    line = refused(capfd, pretrain.main, command)
    assert f"{data} " in line
    (tmp_path / "away").rename(data)
    pretrain.main(command)
    assert "resuming after 1 of 3 epochs" in capfd.readouterr().out and epochs == [1, 2, 3]


VANISHED = {
    "gone": "image '.*b.png' does not exist",
    "broken": "b.png cannot be read as an image .* Replace or remove it",
    "another size": "b.png: the image has 20 x 20 pixels, but its annotations are for 40 x 30",
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", VANISHED)
def test_an_image_that_vanishes_from_a_detectors_data(tmp_path, workers, fault):
    marks = coco(tmp_path)
    name = f"vanishing_{fault}_{workers}".replace(" ", "_")
    chosen = {part: [f"{name}=coco:{tmp_path}:{marks}"] for part in ("TRAIN", "TEST")}
    keys = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "2",
        "MODEL.WEIGHTS",
        "",
        "DATASETS.CLASSES",
        "['cat', 'dog']",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "DATALOADER.NUM_WORKERS",
        str(workers),
    ]
    cfg = config.load_config(ROOT / "configs/digits_mask_rcnn_robust.yaml", keys, datasets=chosen)
    custom.register_custom(cfg)
    loaders = [loader.build_train_loader(cfg), loader.build_test_loader(cfg, name)]
    assert all(len(next(iter(made))) for made in loaders) and len(loaders[1]) == 2
    image = tmp_path / "b.png"
    if fault == "gone":
        image.unlink()
    elif fault == "broken":
        image.write_bytes(image.read_bytes()[:40])
    else:
        shutil.copy(tmp_path / "a.png", image)
        from PIL import Image

        Image.open(image).resize((20, 20)).save(image)
    for made in loaders:
        with pytest.raises(UserError, match=VANISHED[fault]) as e:
            for batch, _ in zip(made, range(9), strict=False):
                assert batch
        assert "Traceback" not in str(e.value)


def test_clocks_that_jump_change_nothing(tmp_path, monkeypatch, capfd):
    """The clock jumps by hours in both directions, as after a suspend."""
    jumps, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + jumps.choice((-90_000, 0, 90_000)))
    pretraining(tmp_path, None)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["seconds"] < 600
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["seconds"] < 600 for row in rows)
    for path in (tmp_path / "run").iterdir():
        os.utime(path, (4e9, 4e9))  # the year 2096
    pretraining(tmp_path, None)
    assert "finished. Nothing to do" in capfd.readouterr().out

    allow(monkeypatch)
    runs = read_study(toy(tmp_path, 2, fails=1))
    seconds, began = [], time.perf_counter()
    queue = Queue(
        runs,
        Local(1),
        pause=0.05,
        on_end=lambda run, outcome, queue: seconds.append(outcome.seconds),
    )
    assert queue.work() and len(queue.finished) == 2
    assert all(0 < each < 60 for each in seconds) and time.perf_counter() - began < 60


def test_20_processes_that_share_a_cache_get_the_same_and_make_it_once(tmp_path, host):
    host.pages["/net.pth"] = Page(GOOD, pause=0.3)
    for name in ("mirror", "answers"):
        (tmp_path / name).mkdir()
    state = random_network("resnet18", 1000).state_dict()
    torch.save(robustness_contents(state), tmp_path / "mirror" / "resnet18_linf_eps8.0.ckpt")
    own = {
        "ROBUST_BACKBONES_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        weights.MIRROR: str(tmp_path / "mirror"),
        "NO_PROXY": "*",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "shared_cache.py"),
        f"{host.url}/net.pth",
        str(tmp_path / "answers"),
        "20",
    ]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["codes"] == [0] * 20, done.stderr
    assert len(answer["found"]) == 20 and all(a == answer["found"][0] for a in answer["found"])
    assert answer["made"] == ["_compute", "_convert", "_write"]
    assert host.count("GET", "/net.pth") == 1


FETCH = "import sys; from robust_backbones import weights; weights.fetch_weights(sys.argv[1])"


def test_a_download_that_is_killed_is_continued(host, empty_cache):
    host.pages["/net.pth"] = Page(GOOD, cuts=[300_000])
    process = subprocess.Popen([sys.executable, "-c", FETCH, f"{host.url}/net.pth"])
    while not (parts := list(empty_cache.rglob("*.part"))) or parts[0].stat().st_size < 300_000:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)  # it waits before the next attempt
    process.wait()
    assert not list((empty_cache / "weights").glob("*-net.pth"))
    host.log.clear()
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD
    assert [asked for _, _, asked in host.log] == ["bytes=300000-"]


def test_notes_of_a_study_behind_a_torn_one_are_read(tmp_path, monkeypatch):
    from classification.study import execute

    notes = tmp_path / "attempts.jsonl"
    notes.write_text('{"state": "failed", "code": 1, "error": "a"}\n{"sta')
    execute.record(tmp_path, execute.Attempt("failed", 1, "b"))
    execute.record(tmp_path, execute.Attempt("failed", 1, "c"))
    assert [row["error"] for row in execute.read_attempts(tmp_path)] == ["a", "b", "c"]


@pytest.mark.slow
def test_killed_at_random_moments_commands_end_as_if_they_had_not_been(tmp_path):
    """Short form of tests.faults.kills. docs/development/reliability.md has the long form."""
    quick = ["pretraining", "detector training", "conversion"]
    command = [sys.executable, "-m", "tests.faults.kills", "--kills", "2", "--subjects", *quick]
    own = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[2] for row in rows] == ["2"] * 3 and not list(tmp_path.glob("faults_*"))
