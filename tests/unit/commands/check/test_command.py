"""Arguments of `robust-backbones check` that are invalid before any step."""

import pytest

from robust_backbones.commands.check.command import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--online", "--weights", "nothere.pt"], "--weights nothere.pt: no file has this path"),
        (["--online", "--weights", "robust://resnet99"], "no published model is named 'resnet99'"),
        (["--online", "--imagenet", "nothere"], "--imagenet nothere is not a folder"),
        (["--imagenet", "nothere"], "without --online"),
        (["--output", "."], "Give the name of a JSON file"),
        (["--output", f"{__file__}/check.json"], "test_command.py is a file"),
    ],
)
def test_invalid_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
