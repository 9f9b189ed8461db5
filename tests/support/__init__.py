"""Helpers of the tests: small inputs, independent references, runs of commands."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
