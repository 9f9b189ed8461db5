"""`python -m classification` lists the commands."""

import importlib

COMMANDS = ("pretrain", "robustness_eval", "transfer", "interpret", "study", "report", "datasets")

if __name__ == "__main__":
    for name in COMMANDS:
        text = importlib.import_module(f"classification.{name}").__doc__ or ""
        about = text.split("\n")[0]
        print(f"python -m classification.{name:16} {about}")
    print("Each explains its options with --help.")
