"""Detectors under attack and corruption."""
