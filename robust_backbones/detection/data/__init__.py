"""Datasets of detectors: registered, checked, read."""
