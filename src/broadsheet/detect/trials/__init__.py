"""How the stage is tried: pairs of human and machine texts, and every detector on them."""
