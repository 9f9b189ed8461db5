"""Build the sections of a report from results: one for each table and figure of the paper."""
