"""What the data sets are made of, from files to batches."""
