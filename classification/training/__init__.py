"""From batches to weights: methods, the update, the loop, several processes."""
