"""RL post-training of language models in JAX: one file per paper."""

__version__ = '0.1.0'
