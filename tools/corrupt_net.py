#!/usr/bin/env python
"""Measure a detector's AP under common corruptions. See `python tools/corrupt_net.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.corrupt import main

if __name__ == "__main__":
    sys.exit(main())
