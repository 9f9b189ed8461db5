"""Create tables, figures and a page from results, next to the paper's numbers."""
