"""How robust accuracy is measured, and doubted."""
