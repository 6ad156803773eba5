"""How the stage is tried: long texts, what is read off while they are read, and a trial a paper."""
