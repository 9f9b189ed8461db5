"""Builders of the report's sections: each table and figure of the paper, from results."""
