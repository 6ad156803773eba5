"""A training over processes: its ranks, the turns of its stages, what a model counts, and models laid out so."""
