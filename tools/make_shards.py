#!/usr/bin/env python
"""Pack an image folder into WebDataset shards. See `python tools/make_shards.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lets an uninstalled clone run

from classification.datasets.make_shards import main

if __name__ == "__main__":
    sys.exit(main())
