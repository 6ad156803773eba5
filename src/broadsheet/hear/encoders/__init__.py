"""Audio encoders, frozen, behind one socket; and the cache of their frames."""
