"""How the papers of this stage are tried."""
