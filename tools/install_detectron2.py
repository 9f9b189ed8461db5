#!/usr/bin/env python
"""Install Detectron2. See `python tools/install_detectron2.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from robust_backbones.commands.install_detectron2 import main

if __name__ == "__main__":
    sys.exit(main())
