"""List the commands of this package, or run one: `python -m classification COMMAND ...`."""

import sys

from robust_backbones.__main__ import COMMANDS, run
from robust_backbones.core.cli import program_name
from robust_backbones.core.errors import user_errors

if __name__ == "__main__":
    with user_errors():
        ours = {n: row for n, row in COMMANDS.items() if row[0].startswith("classification.")}
        run(program_name(), ours, sys.argv[1:])
