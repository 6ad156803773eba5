"""How the stage is tried: embedders as arms, and a trial a paper."""
