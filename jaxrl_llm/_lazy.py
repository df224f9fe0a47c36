"""Public names of a package, imported when they are first used.

`import jaxrl_llm` must not load flax, orbax or a tokenizer (PEP 562).
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attach(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
  """The `__getattr__`, `__dir__` and `__all__` of a package.

  Args:
    package: its `__name__`.
    exports: the public names of each submodule; an empty list exports only the submodule itself.

  Returns:
    What the package assigns to these three names.
  """
  homes = {name: module for module, names in exports.items() for name in names}
  public = sorted({*homes, *exports})

  def get(name: str) -> Any:
    if name in homes:
      return getattr(importlib.import_module(f'{package}.{homes[name]}'), name)
    if name in exports:
      return importlib.import_module(f'{package}.{name}')
    raise AttributeError(f'module {package!r} has no attribute {name!r}')

  return get, lambda: public, public
