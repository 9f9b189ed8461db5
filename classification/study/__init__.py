"""Make the runs that a study file asks for, here or on a Ray cluster; show what came out."""
