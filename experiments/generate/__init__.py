"""Samples from a policy: `python -m experiments.generate`."""
