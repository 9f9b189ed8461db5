"""`python -m classification` lists the commands, `python -m classification NAME ...` runs one."""

import importlib
import runpy
import sys

from robust_backbones.core.errors import UserError, user_errors

COMMANDS = ("pretrain", "robustness_eval", "transfer", "interpret", "study", "report", "datasets")


def main(words: list[str]) -> None:
    """Become the command that the first word names; without words, list them."""
    if not words or words[0] in ("-h", "--help"):
        for name in COMMANDS:
            about = (importlib.import_module(f"classification.{name}").__doc__ or "").split("\n")[0]
            print(f"python -m classification.{name:16} {about}")
        print("Each explains its options with --help.")
        return
    if words[0] not in COMMANDS:
        raise UserError(f"command '{words[0]}' is unknown; one of: {', '.join(COMMANDS)}.")
    sys.argv = words
    runpy.run_module(f"classification.{words[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
