"""One comparison of all algorithms: `python -m experiments.arena`."""
