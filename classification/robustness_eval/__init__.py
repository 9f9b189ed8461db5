"""Measure clean and robust accuracy -> result.json, per_image.jsonl, curve.png."""
