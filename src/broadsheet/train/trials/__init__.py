"""How the stage is tried: a laboratory in which models are trained from nothing, and a trial a paper."""
