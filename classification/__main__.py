"""`python -m classification` lists the commands."""

import importlib

from robust_backbones.errors import user_errors

COMMANDS = ("pretrain", "robustness_eval", "transfer", "interpret", "study", "report", "datasets")

if __name__ == "__main__":
    with user_errors():
        for name in COMMANDS:
            about = (importlib.import_module(f"classification.{name}").__doc__ or "").split("\n")[0]
            print(f"python -m classification.{name:16} {about}")
        print("Each explains its options with --help.")
