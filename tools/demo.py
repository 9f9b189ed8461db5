#!/usr/bin/env python
"""Run the whole pipeline on bundled data. See `python tools/demo.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
