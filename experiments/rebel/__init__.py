"""REBEL with a reward model: `python -m experiments.rebel`."""
