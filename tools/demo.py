#!/usr/bin/env python
"""Run the whole pipeline on embedded data. See `python tools/demo.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the clone need not be installed

from robust_backbones.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
