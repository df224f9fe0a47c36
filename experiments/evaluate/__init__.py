"""Evaluates a policy on a task: `python -m experiments.evaluate`."""
