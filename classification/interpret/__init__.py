"""Visualize and invert representations (the paper's Figure 1)."""
