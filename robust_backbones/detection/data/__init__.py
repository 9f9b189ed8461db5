"""Datasets of detectors: register, check, read, load."""
