"""Test how programs end: user errors, Ctrl-C, closed pipes."""

import re
import subprocess
import sys

import pytest

from robust_backbones.core.errors import UserError, choose_from, counted, nearest, user_errors


def test_user_errors_are_one_line_and_exit_with_2(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("eps is -1; give 0 or more.")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: eps is -1; give 0 or more.\n"
    with pytest.raises(KeyError), user_errors():
        raise KeyError


def test_interrupted_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise KeyboardInterrupt
    assert stop.value.code == 130 and capsys.readouterr().err.startswith("interrupted.")


MANY = [f"name{i}" for i in range(20)]


@pytest.mark.parametrize(
    "name, names, similar",
    [
        ("CIFAR-10", ["cifar10", "cifar100", "pets"], ["cifar10", "cifar100"]),
        (
            "mask_rcnn",
            ["coco_mask_rcnn_robust_eps3", "coco_retinanet"],
            ["coco_mask_rcnn_robust_eps3"],
        ),
        ("ab", ["abacus", "cables"], []),
        ("zzz", ["cifar10"], []),
        ("", ["cifar10"], []),
        ("name", MANY, 3),
    ],
)
def test_similar_names_are_suggested(name, names, similar):
    found = nearest(name, names)
    assert len(found) == similar if isinstance(similar, int) else found == similar


@pytest.mark.parametrize(
    "name, names, list_all, message",
    [
        ("pest", ["pets", "cars"], "unused", "Did you mean pets? Choose from pets, cars."),
        ("birds", ["pets", "cars"], "", "Choose from pets, cars."),
        ("nome7", MANY, "List all with: list", "Did you mean name7, .*[?] List all with: list"),
        ("zzz", MANY, "List all with: list", "List all with: list"),
        ("zzz", MANY, "", f"Choose from {', '.join(MANY[:12])}, and 8 more."),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name, names, list_all, message):
    assert re.fullmatch(message.replace("pets?", "pets[?]"), choose_from(name, names, list_all))


HEAD = "from robust_backbones.core.errors import user_errors\nwith user_errors():\n    "


def test_characters_outside_ascii_are_escaped():
    run = subprocess.run(
        [sys.executable, "-c", HEAD + "print('\u03b5 1')"],
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "\\u03b5 1\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_discard_output(closed):
    code = f"{HEAD}import sys; print('line'); sys.stderr.write('line')"
    run = subprocess.run(
        f'{sys.executable} -c "$CODE" {closed}',
        shell=True,
        env={"CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and run.stdout + run.stderr in ("line", "line\n")


@pytest.mark.parametrize(
    "code, expected",
    [
        ("[print('line') for i in range(100_000)]", (141, 0)),  # while printing
        ("print('line')", (141, 0)),  # when the buffer is flushed at the end
        ("raise BrokenPipeError('of a worker')", (1, None)),
    ],
)
def test_a_closed_pipe_is_not_an_error(code, expected):
    run = subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if expected[1] == 0:
        run.stdout.close()
    said = run.stderr.read()
    assert run.wait() == expected[0]
    assert "of a worker" in said if expected[1] is None else said == ""


def test_a_number_agrees_with_its_words():
    found = [counted(number, "image is", "images are") for number in (0, 1, 2)]
    assert found == ["0 images are", "1 image is", "2 images are"]
