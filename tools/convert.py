#!/usr/bin/env python
"""Convert a checkpoint. See `python tools/convert.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
