"""Train classifiers: methods, update step, training loop, and distributed training."""
