"""Memory and time of loading a checkpoint: `python -m experiments.bench_load`."""
