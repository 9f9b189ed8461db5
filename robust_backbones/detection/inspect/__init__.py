"""Predict with detectors, export them, draw predictions and training curves."""
