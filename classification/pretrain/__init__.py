"""Train a standard or robust classifier, and save its weights, metrics and result."""
