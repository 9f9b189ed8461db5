"""Looking at detectors: prediction, export, pictures, curves."""
