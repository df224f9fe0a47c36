"""Memory and compute of algorithms at published sizes: `python -m experiments.cost`."""
