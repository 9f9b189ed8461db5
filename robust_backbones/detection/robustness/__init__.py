"""Evaluation of detectors under attack and corruption."""
