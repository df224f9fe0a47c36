"""Tasks: problem generators and environments."""

import pkgutil

from jaxrl_llm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__, {module.name: [] for module in pkgutil.iter_modules(__path__)})
