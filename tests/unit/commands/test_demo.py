"""The demo: its stages, its commands and its page, without the trainings."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_backbones.__main__ import COMMANDS
from robust_backbones.commands import demo_page, demo_runs
from robust_backbones.core.signals import EXIT_RESUMABLE

ATTACK = {"constraint": "l2", "eps": 1.0, "steps": 10}
QUESTION, ANSWER = "Fixed-feature transfer", "Better on <none> of 2 tasks."


@pytest.fixture
def finished(tmp_path):
    """The folder of a demo in which every stage is finished."""
    for network in demo_runs.networks(tmp_path):
        network.pretraining.mkdir(parents=True)
        network.detector.mkdir()
        pretrained = {
            "metrics": {"clean_top1": 95.0, "robust_top1": 83.06},
            "settings": ATTACK | {"steps": 3, "evaluation": ATTACK},
            "data": {"test": {"images": 360}},
            "hardware": {
                "torch": "2.9",
                "precision": "float32",
                "gpus": [],
                "cpu": "x86_64",
                "threads": 2,
            },
        }
        aps = {"bbox": {"AP": 62.4}, "segm": {"AP": 60.31}}
        detected = {
            "metrics": {demo_runs.DATASET: aps},
            "settings": {"SOLVER": {"IMS_PER_BATCH": 4}},
        }
        (network.pretraining / "result.json").write_text(json.dumps(pretrained))
        (network.detector / "result.json").write_text(json.dumps(detected))
        epochs = ({"epoch": i, "clean_top1": 90.0 + i} for i in (1, 2))
        (network.pretraining / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
        steps = ({"iteration": i, "total_loss": 3.0 - i} for i in (0, 1, 1))
        (network.detector / "metrics.json").write_text("\n".join(map(json.dumps, steps)))
        network.backbone.touch()
    draw(tmp_path / "scenes")
    report = tmp_path / "compare/report"
    report.mkdir(parents=True)
    answer = {"question": QUESTION, "text": ANSWER, "cautions": ["Few images."]}
    (report / "report.json").write_text(json.dumps({"answers": [answer]}))
    (report / "index.html").touch()
    return tmp_path


def draw(folder):
    """Write pictures as `visualize` does: for each scene, the truth and two predictions."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for scene in range(demo_runs.SCENES):
        for position in range(3):
            pixels = np.full((64, 64, 3), 60 * scene + 20 * position, np.uint8)
            Image.fromarray(pixels).save(pictures / f"{scene:03d}_val_0000{scene}_{position}.png")
    (folder / "index.html").touch()


@pytest.fixture
def segmented(finished):
    """The folder of a finished demo with semantic segmentation."""
    for network, mean_iou in zip(demo_runs.networks(finished), (50.0, 55.0), strict=True):
        network.attack.parent.mkdir(parents=True)
        row, attacked = {"sem_seg": {"mIoU": mean_iou}}, {"sem_seg": {"mIoU": mean_iou - 20}}
        metrics = {"attacks": {"clean": row, f"eps {demo_runs.SEGMENTATION_EPS}": attacked}}
        network.attack.write_text(json.dumps({"metrics": metrics}))
        metrics = {demo_runs.SEGMENTATION_DATASET: {"sem_seg": {"mIoU": mean_iou + 1}}}
        (network.segmenter / "result.json").write_text(json.dumps({"metrics": metrics}))
    draw(finished / "masks")
    return finished


class Page(HTMLParser):
    """Texts of a page by the tag around them, and the pictures."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.images, self._open = {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.images += [dict(attributes)] if tag == "img" else []
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data


@pytest.fixture
def page(finished):
    """The page of a finished demo, and its folder."""
    found = demo_page.read_numbers(demo_runs.networks(finished))
    file = demo_page.write_page(found, demo_runs.plan(finished), finished)
    return Page(file.read_text(encoding="utf-8")), finished


def test_the_page_has_a_title_above_each_picture_and_no_external_reference(page):
    found, folder = page
    titles = ["truth", "standard backbone", "robust backbone"]
    assert found.texts["figcaption"] == titles * demo_runs.SCENES
    assert [image["alt"] for image in found.images] == found.texts["figcaption"]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in found.images)
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "color-scheme: light dark" in text and "<link" not in text


def test_the_page_names_the_attacks_with_their_units(page):
    text = (page[1] / "index.html").read_text(encoding="utf-8")
    assert "PGD, 3 steps, L2 eps 1" in text  # of the training
    assert "PGD, 10 steps, L2 eps 1. Eps bounds" in text
    assert text.count("<svg") == 3


def test_the_page_has_the_answer_and_starts_the_next_steps_with_compare(page):
    found, folder = page
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "Better on &lt;none&gt; of 2 tasks." in text and "Few images." in text
    assert 'href="compare/report/index.html"' in text
    assert found.texts["pre"][0].startswith("robust-backbones compare ")


def test_the_commands_of_the_page_are_those_that_ran(page):
    found, folder = page
    ran = [["robust-backbones", *stage.arguments] for stage in demo_runs.plan(folder)]
    shown = found.texts["pre"][-len(ran) :]
    assert [shlex.split(command.replace("\\\n", "")) for command in shown] == ran
    assert all(len(line) < 100 + len(str(folder)) for text in shown for line in text.splitlines())


def test_the_picture_has_the_scenes_with_titles(page):
    with Image.open(page[1] / "scenes.png") as picture:
        assert picture.width > 3 * 64 and picture.height > demo_page.SHEET * 64


def test_the_page_with_segmentation_has_its_numbers_and_pictures(segmented):
    found = demo_page.read_numbers(demo_runs.networks(segmented))
    plan = demo_runs.plan(segmented, segmentation=True)
    page = Page(demo_page.write_page(found, plan, segmented).read_text(encoding="utf-8"))
    assert page.texts["figcaption"] == ["truth", "standard backbone", "robust backbone"] * 8
    header, *rows = demo_page.table(found)
    assert header[5:] == ["mIoU", "mIoU, 20 scenes", "mIoU, 20 attacked scenes"]
    assert [row[5:] for row in rows] == [["51.0", "50.0", "30.0"], ["56.0", "55.0", "35.0"]]
    assert "standard: attack\n" in page.texts["h3"]


def test_segmentation_comes_after_the_other_stages(tmp_path):
    """So it does not repeat the stages of a finished demo."""
    stages = [demo_runs.plan(tmp_path, segmentation) for segmentation in (False, True)]
    assert stages[1][: len(stages[0])] == stages[0] and len(stages[1]) > len(stages[0])


def test_every_stage_is_a_command_of_this_package(tmp_path):
    stages = demo_runs.plan(tmp_path, segmentation=True)
    assert {stage.arguments[0] for stage in stages} <= set(COMMANDS)


COMMAND_LINES = [
    "robust-backbones zoo list",
    "robust-backbones train --config a.yaml --resume MODEL.WEIGHTS 'a b.pth' OUTPUT_DIR "
    + "x" * 90,
    "robust-backbones convert " + "/a/very/long/path" * 6 + " " + "/other/path" * 9 + " --force",
]


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_wrapped_commands_mean_the_same(command):
    wrapped = demo_page.wrap(command)
    assert shlex.split(wrapped.replace("\\\n", "")) == shlex.split(command)
    for line in wrapped.splitlines():
        words = line.removesuffix("\\").split()
        assert len(line) <= 78 or len(words) == 1
    assert all(line.startswith("    ") for line in wrapped.splitlines()[1:])


def stages(folder, *codes: str) -> list[demo_runs.Stage]:
    """Stages whose commands run these lines of Python."""
    return [
        demo_runs.Stage(str(i), ("-c", code), folder / f"{i}.log", folder / f"{i}.made")
        for i, code in enumerate(codes)
    ]


@pytest.fixture
def python(monkeypatch):
    """Stages run Python instead of this package."""
    popen = demo_runs.subprocess.Popen
    monkeypatch.setattr(
        demo_runs.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, *command[3:]], **options),
    )


def test_finished_stages_are_skipped_and_later_ones_run_again(tmp_path, python, capsys):
    plan = stages(tmp_path, *(f"print('error {i}')" for i in range(3)))
    plan[0].made.touch()
    plan[2].made.touch()  # made from an older file of stage 1
    demo_runs.execute(plan)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "[1/3] 0: finished",
        "[2/3] 1",
        "      error 1",
        "[3/3] 2",
        "      error 2",
    ]
    assert not plan[0].log.exists() and plan[1].log.read_text() == "error 1\n"


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("raise SystemExit(3)", 1, "error: this command failed, see "),
        (f"raise SystemExit({EXIT_RESUMABLE})", EXIT_RESUMABLE, "interrupted. Repeat the command"),
    ],
)
def test_a_failed_or_interrupted_stage_ends_the_demo(
    tmp_path, python, capsys, code, status, message
):
    with pytest.raises(SystemExit) as end:
        demo_runs.execute(stages(tmp_path, code, "print('error: not reached')"))
    assert end.value.code == status
    found = capsys.readouterr()
    assert found.err.startswith(message) and "not reached" not in found.out


def test_the_whole_output_of_a_stage_can_be_shown(tmp_path, python, capsys):
    (stage,) = stages(tmp_path, "print('a sentence'); print()")
    demo_runs.execute([replace(stage, brief=False)])
    assert capsys.readouterr().out == "[1/1] 0\n      a sentence\n"


KILLED = """
import subprocess, sys, time
from robust_backbones.commands import demo_runs
stop = demo_runs._stop_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=stop)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_killed_demo_leaves_no_command_behind():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or _state(child) == "Z":
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the command is still running")


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"
