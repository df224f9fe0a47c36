"""Experiment binaries: python -m experiments.NAME."""
