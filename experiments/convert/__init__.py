"""Hugging Face checkpoints in and out: `python -m experiments.convert`."""
