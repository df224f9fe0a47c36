"""Decoders and their heads as pure functions; the only package that imports flax."""

from jaxrl_llm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {
    'configs': ['TransformerConfig'],
    'encoder': ['EncoderConfig'],
    'lora': ['LoraConfig'],
    'partial': [],
    'policy': [],
    'pretrained': [],
    'q_function': [],
    'reward': [],
    'value': [],
})
