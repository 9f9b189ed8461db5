"""Run many experiments from one file, on this machine or on a Ray cluster."""
