"""Refuses sizes that cannot fit, before anything is allocated.

A config lists what its run needs at least (`memory()`: bytes by what needs them); `check` compares
the largest with the memory of the devices and of the host. These are lower bounds from shapes
alone, and not everything is needed at once: what passes may still run out of memory.
"""

import os
import pathlib
import re
from collections.abc import Mapping

from jaxrl_llm.models.configs import TransformerConfig

# Below this nothing is compared: any machine that runs JAX has more.
_ALWAYS_FITS = 2**28
_UNITS = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')
_CGROUP_LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')


def check(contributors: Mapping[str, int]) -> None:
  """Raises ValueError if a contributor exceeds the memory of the devices and of the host.

  Args:
    contributors: bytes by what needs them, such as 'the parameters (config.model)'.

  Raises:
    ValueError: one line with the largest contributor, its estimate and the memory.
  """
  largest = max(contributors, key=contributors.__getitem__, default='')
  needed = contributors.get(largest, 0)
  if needed <= _ALWAYS_FITS:
    return
  memory, name = available()
  if needed > memory:
    raise ValueError(
        f'the run cannot fit: the largest contributor, {largest}, needs at least '
        f'{describe(needed)}, and {name} has {describe(memory)}')


def available() -> tuple[int, str]:
  """Returns the larger of the devices' and the host's memory in bytes, and a name for it."""
  import jax

  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  for path in map(pathlib.Path, _CGROUP_LIMITS):
    if path.is_file() and (text := path.read_text().strip()).isdigit():
      memory = min(memory, int(text))

  devices = jax.devices()
  limit = (devices[0].memory_stats() or {}).get('bytes_limit', 0) * len(devices)
  if limit > memory:
    return limit, f'{len(devices)} x {devices[0].device_kind}'
  return memory, 'this machine'


def describe(size: int) -> str:
  """Formats a number of bytes with a binary unit."""
  power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
  return f'{size / 1024**power:.3g} {_UNITS[power]}'


def num_weights(model: TransformerConfig) -> int:
  """Counts the entries of the weight matrices, without norms and biases.

  A `vocab_size` of 0, which is filled in later, counts as no vocabulary.
  """
  positions = model.max_length * model.width if model.positions == 'learned' else 0
  embeddings = (1 if model.tie_embeddings else 2) * model.vocab_size * model.width
  return model.num_layers * model.weights_per_block + positions + embeddings


def num_adapter_weights(model: TransformerConfig, rank: int) -> int:
  """Counts the entries of LoRA adapters of one projection per layer, the query's."""
  return model.num_layers * rank * (model.width + model.num_heads * model.head_dim)


def adapters(model: TransformerConfig, rank: int) -> dict[str, int]:
  """Returns the bytes that LoRA adapters and their optimizer need at least, for `check`."""
  return {'the adapters with their optimizer (config.lora.rank)':
          3 * 4 * num_adapter_weights(model, rank)}


def cache_bytes(model: TransformerConfig, rows: int, slots: int) -> int:
  """Returns the bytes of the keys and values of `rows` sequences of `slots` tokens."""
  entries = 2 * rows * slots * model.num_layers * model.num_kv_heads * model.head_dim
  return entries * item_bytes(model.compute_dtype)


def item_bytes(dtype: str) -> int:
  """Returns the bytes of one number of a config's dtype."""
  return {'float32': 4, 'bfloat16': 2}[dtype]


def out_of_memory_line(error: BaseException, function: str) -> str | None:
  """Returns one line if the error says that memory ran out, or None.

  Args:
    error: an exception from JAX, NumPy or Python.
    function: the function of this project that was running.

  Returns:
    The line, with the bytes that were asked for if the error names them.
  """
  text = str(error)
  exhausted = 'RESOURCE_EXHAUSTED' in text or 'Out of memory' in text
  if not isinstance(error, MemoryError) and not exhausted:
    return None
  amount = re.search(r'allocat\w+\s+(?:of\s+)?([\d.]+ ?(?:bytes|[KMGTPE]i?B))', text)
  amount = amount or re.search(r'Unable to allocate ([\d.]+ [KMGTPE]iB)', text)
  size = f' ({amount[1]} were asked for)' if amount else ''
  return f'out of memory in {function}{size}: lower the batch sizes, the lengths or the model'
