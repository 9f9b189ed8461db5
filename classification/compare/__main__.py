"""Answer whether a robust backbone transfers better to your task.

Examples:
  robust-backbones compare /data/flowers
  robust-backbones compare photos --mode full-network --weights standard.pt robust.pt --plan
  robust-backbones compare pets dtd --data /data --executor ray --address auto
  robust-backbones compare coco:/data/images:train.json --test coco:/data/images:test.json

Checks the data, measures a short run, prints the cost of all runs, writes OUTPUT/study.yaml, runs
it, and writes the report to OUTPUT/report. The same command resumes an interrupted comparison.

Exit codes: 0 success, 2 invalid input or failed runs, 75 interrupted and resumable.
"""

import sys

from classification.compare import options
from classification.compare.settings import SETTINGS
from robust_backbones import weights
from robust_backbones.core.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Run the command line. The module's docstring lists the exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    args = options.parser(__doc__).parse_args(argv)
    with user_errors():
        request = options.make_request(args, argv)
        if not (request.output / SETTINGS).exists():  # an earlier answer is shown without networks
            for source in request.settings.weights:  # report this before importing torch
                weights.check_source(source)
        from classification.compare.run import run

        run(request)


if __name__ == "__main__":
    main()
