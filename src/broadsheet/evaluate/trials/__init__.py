"""How the stage is tried."""
