"""Speed next to transformers: `python -m experiments.bench_transformers`."""
