"""Node classification with few labels: `python -m experiments.shoestring`."""
