"""Drawing responses from a policy."""

from jaxrl_llm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {
    'decode': ['make_sampler'],
    'dialogue': [],
    'guided': [],
    'processors': [],
    'stream': [],
})
