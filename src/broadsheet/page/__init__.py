"""The page of 79 papers: its rows, the recorded evidence, and the rungs computed from both."""
