"""Speed of a model of published size: `python -m experiments.bench_model`."""
