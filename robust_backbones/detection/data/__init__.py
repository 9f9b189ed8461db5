"""Register, check, read and load detection datasets."""
