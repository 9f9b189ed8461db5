#!/usr/bin/env python
"""Find errors in detection datasets. See `python tools/check_data.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.check_data import main

if __name__ == "__main__":
    sys.exit(main())
