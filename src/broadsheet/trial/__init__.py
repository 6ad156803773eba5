"""Trials: arms run on the same items, compared in pairs, and the verdicts that follow."""
