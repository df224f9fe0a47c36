"""Train step and training loop: optimizers, checkpoints, metrics, randomness."""

from jaxrl_llm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {
    'checkpoints': [],
    'fingerprint': [],
    'loop': [],
    'metrics': [],
    'optim': ['OptimizerConfig', 'make_optimizer'],
    'rng': ['Stream', 'base_key', 'stream_key'],
    'step': ['jit_train_step'],
})
