"""VGS, search guided by a value model: `python -m experiments.vgs`."""
