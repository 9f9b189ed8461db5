"""Training: methods, the update step, the training loop, and several processes."""
