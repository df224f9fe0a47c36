"""Verdicts of the math verifier on labelled solutions: `python -m experiments.check_verifier`."""
