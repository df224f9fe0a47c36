"""Faults: `python -m experiments.faults`."""
