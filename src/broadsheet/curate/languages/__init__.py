"""What a language's own text says about it: thresholds, words, duplicates, and which tests a model can learn by."""
