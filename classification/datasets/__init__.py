"""List, check and download the datasets."""
