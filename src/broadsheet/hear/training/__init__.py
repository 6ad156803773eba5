"""How ears are trained: the three stages, activation, a warm start."""
