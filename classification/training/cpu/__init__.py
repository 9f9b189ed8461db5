"""Faster convolutions for CPUs."""
