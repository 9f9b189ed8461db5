"""What the documents say to type is what the programs understand.

Each command is parsed by its own program, whether it needs a GPU, ImageNet or nothing. Those that
can run small on bundled data run in tests/project/test_docs_run.py."""

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest

from robust_backbones.core.errors import UserError
from robust_backbones.core.input_statistics import IMAGENET
from tests.support import documents
from tests.support.documents import ROOT, SHELL

# Programs of others, and what is checked of their arguments.
OTHERS = {
    "cd",
    "cp",
    "export",
    "git",
    "make",
    "mkdir",
    "mv",
    "pip",
    "pytest",
    "sleep",
    "srun",
    "tar",
    "uv",
}
OTHERS |= {".", "exit", "python3", "ln", "scontrol", "set", "tensorboard", "test", "trap"}
# A file of docs/guides/detectron2_project.md, which tests/paths/test_foreign_project.py runs.
ELSEWHERE = "python train.py"
DETECTORS = ("train_net", "attack_net", "corrupt_net", "visualize", "train", "attack", "corrupt")
YOURS = "mine.yaml"  # a config of the reader


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def ids(found) -> str:
    return str(found)[:90]


@pytest.mark.parametrize("block", documents.every_block(*SHELL), ids=ids)
def test_commands_are_shell(block):
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", documents.every_command(), ids=ids)
def test_a_command_is_understood(command):
    check(command)


def check(command: documents.Command) -> None:
    """Raises AssertionError where its program would refuse it."""
    if " ".join(command.words).startswith(ELSEWHERE):
        return
    found = documents.program(command)
    if found is None:
        words = command.words[2 * (command.words[:2] == ("python", "-m")) :]
        assert words[0] in OTHERS, f"{command}: which program is that?"
        documents.check_other(words)
        return
    name, arguments = found
    assert name in documents.programs(), f"{command}: {name} cannot be run"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = documents.parse(name, arguments)
        stem = re.split(r"[./]", name.removesuffix(".py"))[-1]
        FURTHER.get(stem, lambda args: None)(args)
    except SystemExit:
        pytest.fail(f"{command}\n{said.getvalue()}")
    except UserError as error:
        pytest.fail(f"{command}\n{error}")
    for word in command.words:
        if word.startswith("configs/"):
            assert Path(word).is_file(), command


# What parsing alone does not see: combinations, keys of configs, names of data sets, options that
# stand in a study file.


def _pretrain(args) -> None:
    from classification.pretrain import options as pretrain_options

    pretrain_options.make_settings(args)


def _transfer(args) -> None:
    from classification.transfer import options as transfer_options
    from classification.transfer.settings import SourceNetwork

    transfer_options.make_settings(args, SourceNetwork("resnet50", 224, IMAGENET, "0" * 64, {}))


def _datasets(args) -> None:
    from classification.datasets.specs import find_dataset

    for name in args.names:
        find_dataset(name)


def _study(args) -> None:
    from classification.study.file import read_study

    assert read_study(args.study, dict(args.set))


def _report(args) -> None:
    if getattr(args, "study", None):
        args.set = ()
        _study(args)


def _detector(args) -> None:
    from robust_backbones.detection import config

    if args.config and args.config != YOURS:
        # Weight files of the documents do not exist, and the architecture is read from them.
        own = any(word.endswith(".pth") for word in args.opts)
        arch = ["MODEL.ROBUST.ARCH", "resnet50"] if own and "digits" not in args.config else []
        config.load_config(args.config, [*args.opts, *arch])


FURTHER = {
    "pretrain": _pretrain,
    "transfer": _transfer,
    "datasets": _datasets,
    "study": _study,
    "report": _report,
} | dict.fromkeys(DETECTORS, _detector)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python -m classification.pretrain --data /d --epsilon 3 --output o", "--epsilon"),
        ("python -m classification.pretrain --dataset digits --eps 3", "--output"),
        ("python -m classification.transfer --weights w --dataset moths", "moths"),
        ("python -m classification.datasets fetch moths", "moths"),
        ("torchrun --nproc-per-node 8 -m classification.pretrain --recipe large", "large"),
        ("python -m classification.nothing", "nothing"),
        ("python -m classification.study plan configs/studies/table9.yaml", "table9"),
        (
            "python -m classification.study run configs/studies/demo.yaml --set a=1",
            "--set a: no command",
        ),
        ("python tools/nothing.py", "there is no tools/nothing.py"),
        ("python tools/convert.py a.pth", "TARGET is missing"),
        ("tools/train_net.py --config configs/nothing.yaml", "does not exist"),
        ("tools/train_net.py --config configs/digits_mask_rcnn_robust.yaml MODEL.NO 1", "MODEL.NO"),
        ("python benchmarks/probe.py --pictures 3", "--pictures"),
        ("make tea", "no such target"),
        ("pip install '.[tea]'", "no extra tea"),
        ("pip install 'robust-backbones[timm]'", "is on no index"),
        ("python -m pytest tests/test_tea.py", "there is no tests/test_tea.py"),
        ("python -m tea", "which program"),
        ("brew install tea", "which program"),
    ],
)
def test_a_command_that_is_wrong_is_found(line, message):
    """The checks above can fail: each of these did not slip through."""
    [command] = documents.commands(documents.Block("page", 1, "", line))
    with pytest.raises((AssertionError, pytest.fail.Exception), match=re.escape(message)):
        check(command)


def test_a_loop_comes_with_each_of_its_values():
    text = (
        'for eps in 0 1; do\nA=1 python -m x --eps $eps \\\n  --output "o/${eps}_a" && make y\ndone'
    )
    found = documents.commands(documents.Block("page", 7, "", text))
    assert [" ".join(c.words) for c in found] == [
        "python -m x --eps 0 --output o/0_a",
        "python -m x --eps 1 --output o/1_a",
        "make y",
        "make y",
    ]
