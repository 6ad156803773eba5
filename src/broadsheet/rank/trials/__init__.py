"""How the stage is tried: rerankers as arms, and a trial a paper."""
