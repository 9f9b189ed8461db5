"""How networks are trained: methods, recipes, steps, processes, speed."""
