"""Start a command in several processes with torchrun, and exit with the command's exit code.

python -m classification.training.torchrun --standalone --nproc-per-node 8 \\
    -m classification.pretrain --data /data/imagenet --resume --output output/pretrain

The command has the options of torchrun. torchrun exits with 1 after every failure, so a scheduler
cannot tell an interrupted run (75), which it should start again, from invalid input (2).
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from robust_backbones.core.errors import EXIT_USER_ERROR
from robust_backbones.core.signals import EXIT_RESUMABLE, GRACE


def main(argv: list[str] | None = None) -> None:
    """Run torchrun with the given options, and exit with the code of the processes."""
    # The default of 30 s may be too short to save a large network. Old versions ignore this.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    try:
        run(parse_args(argv))
    except SignalException:  # the processes got the signal too, and have saved the run
        sys.exit(EXIT_RESUMABLE)
    except ChildFailedError as error:
        sys.exit(_exit_code(error))


def _exit_code(error: ChildFailedError) -> int:
    """Return the exit code that explains the failure best. Print which process was killed."""
    codes = {failure.exitcode for failure in error.failures.values()}
    for code in (EXIT_USER_ERROR, EXIT_RESUMABLE):
        if code in codes:
            return code
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        print(f"error: process {rank} was killed by signal {-failure.exitcode}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
