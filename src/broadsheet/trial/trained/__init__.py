"""Trials whose arms are trained: several seeds an arm, settings chosen for each, small models from nothing."""
