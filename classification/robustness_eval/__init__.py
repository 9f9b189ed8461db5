"""Measure a classifier's clean and robust accuracy."""
