#!/usr/bin/env python
"""Measure a detector's AP under attack. See `python tools/attack_net.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.attack import main

if __name__ == "__main__":
    sys.exit(main())
