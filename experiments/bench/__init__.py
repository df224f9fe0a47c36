"""Speed of training and sampling: `python -m experiments.bench`."""
