"""Run the experiments of a study file on this machine or on a Ray cluster, and print a table.

Examples:
  robust-backbones study plan configs/studies/table1.yaml
  robust-backbones study run configs/studies/cifar_protocols.yaml --set data=/data/cifar10
  robust-backbones study run configs/studies/table1.yaml --executor ray --address auto

Finished runs are skipped and interrupted runs resume. Failed runs are retried after a pause, except
after a user error (exit code 2). docs/guides/studies.md describes the file format.

Exit codes: 0 success, 2 invalid input or failed runs, 75 interrupted and resumable.
"""

from classification.study.options import parser
from robust_backbones.core.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Run the command line. The module's docstring lists the exit codes."""
    args = parser(__doc__).parse_args(argv)
    with user_errors():
        from classification.study.run import run

        run(args)


if __name__ == "__main__":
    main()
