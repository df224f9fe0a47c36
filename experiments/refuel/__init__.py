"""REFUEL on dialogues: `python -m experiments.refuel`."""
