"""Options of several machines: processes that could never meet are refused at once."""

import pytest

from robust_backbones.commands.train import parse

CONFIG = ["--config", "c.yaml"]
FIRST = "tcp://10.0.0.1:29500"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--num-machines", "2"], "--num-machines 2: --dist-url auto is not an address that other"),
        (
            ["--num-machines", "2", "--dist-url", "tcp://127.0.0.1:4"],
            "give the address of the first",
        ),
        (
            ["--num-machines", "2", "--dist-url", "tcp://localhost:4"],
            "give the address of the first",
        ),
        (["--num-machines", "2", "--dist-url", "10.0.0.1:4"], "is invalid. Give tcp://HOST:PORT"),
        (["--machine-rank", "1"], "--machine-rank 1 must be below --num-machines 1"),
        (["--machine-rank", "-1"], "--machine-rank"),
        (["--num-machines", "0"], "--num-machines"),
    ],
)
def test_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([*CONFIG, *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--num-gpus", "8"],
        ["--dist-url", "tcp://127.0.0.1:4"],
        ["--num-machines", "2", "--machine-rank", "1", "--dist-url", FIRST],
        ["--num-machines", "2", "--dist-url", "file:///shared/meeting"],
    ],
)
def test_allowed(words):
    url = words[-1] if "--dist-url" in words else "auto"
    assert parse([*CONFIG, *words]).dist_url == url
