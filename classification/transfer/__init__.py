"""Measure how well a network transfers to a task -> result.json, per_class.csv, confusion.csv."""
