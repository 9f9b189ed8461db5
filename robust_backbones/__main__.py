"""List the commands, or run one: `robust-backbones COMMAND ...`.

`python -m robust_backbones COMMAND ...` does the same.
"""

import importlib
import sys

from robust_backbones.core.cli import program_name
from robust_backbones.core.errors import UserError, choose_from, user_errors

# Each command, with the module of its `main` function and a description for the list of commands.
COMMANDS = {
    "check": ("robust_backbones.commands.check.command", "check the installation and weights"),
    "zoo": ("robust_backbones.commands.zoo", "list, fetch and verify published models"),
    "convert": ("robust_backbones.commands.convert", "convert a checkpoint and verify the result"),
    "train": ("robust_backbones.commands.train", "train or evaluate a detector"),
    "evaluate": ("robust_backbones.commands.evaluate", "score a file of detections"),
    "attack": ("robust_backbones.commands.attack", "measure a detector's AP under PGD"),
    "corrupt": ("robust_backbones.commands.corrupt", "measure a detector's AP under corruptions"),
    "visualize": ("robust_backbones.commands.visualize", "draw annotations and detections"),
    "check-data": ("robust_backbones.commands.check_data", "find errors in detection datasets"),
    "pretrain": ("classification.pretrain.__main__", "pretrain a standard or robust classifier"),
    "robustness-eval": (
        "classification.robustness_eval.__main__",
        "measure a classifier's robust accuracy",
    ),
    "transfer": ("classification.transfer.__main__", "measure transfer to a classification task"),
    "interpret": ("classification.interpret.__main__", "visualize what a classifier represents"),
    "compare": (
        "classification.compare.__main__",
        "answer whether a robust backbone transfers better to a task",
    ),
    "study": ("classification.study.__main__", "plan and run many runs from one file"),
    "report": ("classification.report.__main__", "make tables, figures and a page from results"),
    "datasets": ("classification.datasets.__main__", "list, check and fetch datasets"),
    "make-shards": (
        "classification.datasets.make_shards",
        "pack an image folder into WebDataset shards",
    ),
    "demo": ("robust_backbones.commands.demo", "run the whole pipeline on bundled data"),
    "install-detectron2": (
        "robust_backbones.commands.install_detectron2",
        "install Detectron2 without a compiler",
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names. Without arguments, list the commands."""
    with user_errors():
        run(program_name(), COMMANDS, sys.argv[1:] if arguments is None else arguments)


def run(program: str, commands: dict[str, tuple[str, str]], arguments: list[str]) -> None:
    """Run the command that the first argument names.

    Args:
        program: name of the program that was started, for the command's help.
        commands: module and description of each command, as in `COMMANDS`.
        arguments: name of the command, with hyphens or underscores, and its arguments.

    Raises:
        UserError: the command is unknown.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        for name, (_, about) in commands.items():
            print(f"{program} {name:20}{about}")
        print("Each command explains its options with --help.")
        return
    name = arguments[0].replace("_", "-")
    if name not in commands:
        known = choose_from(name, commands, f"List all commands with: {program} --help")
        raise UserError(f"command '{arguments[0]}' is unknown. {known}")
    sys.argv = [f"{program} {name}", *arguments[1:]]  # argparse prints argv[0] as the program
    if status := importlib.import_module(commands[name][0]).main(arguments[1:]):
        sys.exit(status)


if __name__ == "__main__":
    main()
