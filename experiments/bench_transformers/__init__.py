"""Speed beside transformers: `python -m experiments.bench_transformers`."""
