"""Reads and writes Hugging Face checkpoints, streaming, with one name map per family."""
