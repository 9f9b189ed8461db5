#!/usr/bin/env python
"""Score a file of detections. See `python tools/evaluate.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
