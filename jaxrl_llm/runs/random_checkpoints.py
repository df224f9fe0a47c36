"""Randomly initialised checkpoints of published shapes, for benchmarks."""

import pathlib
from typing import Any

from absl import flags

SHAPES = ('llama_100m', 'qwen2.5_1.5b', 'qwen2.5_3b', 'qwen2.5_7b')


def shape(name: str, **overrides: Any) -> tuple[Any, str]:
  """Returns (config, model_type) of a shape."""
  import dataclasses

  from jaxrl_llm.models import configs

  llama = configs.TransformerConfig(
      vocab_size=16_384, num_layers=12, width=768, num_heads=12, num_kv_heads=12, head_dim=64,
      mlp_width=2048, max_length=2048, tie_embeddings=False)
  makers = {
      'llama_100m': lambda: llama, 'qwen2.5_1.5b': configs.qwen2_5_1_5b,
      'qwen2.5_3b': configs.qwen2_5_3b, 'qwen2.5_7b': configs.qwen2_5_7b}
  config = dataclasses.replace(makers[name](), **overrides)
  return config, 'llama' if name.startswith('llama') else 'qwen2'


def write_random(directory: str, name: str, dtype: str) -> None:
  """Writes a checkpoint of random numbers, one tensor at a time."""
  import json

  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxrl_llm.models import policy
  from jaxrl_llm.models.pretrained import huggingface, mapping, weights

  config, model_type = shape(name)
  family = huggingface.find_family(model_type)
  abstract = jax.eval_shape(policy.make(config).init, jax.random.key(0))
  entries = mapping.with_prefix(family.entries(config), family.PREFIX)
  dtype = jnp.dtype(dtype)
  rng = np.random.default_rng(0)

  def tensors():
    for tensor, size in mapping.shapes(entries, abstract).items():
      draw = lambda size=size: (0.02 * rng.standard_normal(size, np.float32)).astype(dtype)
      yield weights.NewTensor(tensor, size, dtype, draw)

  with weights.new_directory(directory) as folder:
    (folder / 'config.json').write_text(json.dumps(family.write_config(config, model_type)))
    weights.write_files(folder, tensors(), max_shard_bytes=10**9)


def check_paths(values: flags.FlagValues) -> None:
  """Raises a one-line ValueError for a --folder or --json that cannot be written."""
  if values.folder and not pathlib.Path(values.folder).is_dir():
    raise ValueError(f'folder must exist, got {values.folder!r} (--folder)')
  path = pathlib.Path(values.json)
  if values.json and (path.is_dir() or not path.parent.is_dir()):
    raise ValueError(f'json must name a file in an existing folder, got {values.json!r} (--json)')
