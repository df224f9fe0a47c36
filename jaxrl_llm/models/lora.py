"""Low-rank adapters: y = x W + (α / r) (x A) B, with W frozen and A, B trained.

Parameters are {'base': the model's own tree, 'adapters': {...}}. The adapters are nested like the
base, with {'lora_a', 'lora_b'} in place of a kernel:

  layers/attention/query: lora_a [N, in, r], lora_b [N, r, out] for a kernel [N, in, out];
  head: lora_a [r, D], lora_b [V, r] for a kernel [V, D].

The layers add the low-rank product to their own output, so that no merged weight is stored. A head
is the exception: it is returned as one kernel, the sum of both, and its gradient is as large. A
head that is tied to the embedding can have an adapter, which the embedding does not use. The
optimizer's `trainable` decides what else is trained (norms, embeddings, a value head).

References:
  Hu et al., 2021, LoRA, arXiv 2106.09685.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_llm import checks
from jaxrl_llm.types import Array, ModelFns, Params

# The parameters for `optim.make_optimizer` to train.
TRAINABLE = 'adapters/.*'


@dataclasses.dataclass
class LoraConfig:
  """Kernels with adapters, and the rank and scale of the adapters.

  The defaults of `alpha` and `targets` are LongLoRA's (Chen et al., 2023, arXiv 2309.12307), which
  uses rank 8.

  Attributes:
    rank: r, columns of A; 0 is off, without adapters.
    alpha: α; the product A B is multiplied by α / r.
    targets: regular expression for the paths of layers, without `kernel`. It matches whole names
      at the end of a path, such as 'attention/(query|value)', 'mlp/.*' and 'head'.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: str = 'attention/(query|key|value|output)'

  def validate(self, prefix: str = 'config.lora') -> None:
    """Raises a one-line ValueError if a field is out of range or would be ignored.

    Args:
      prefix: path of this config, for the message.
    """
    checks.at_least(self, prefix, rank=0)
    checks.positive(self, prefix, 'alpha')
    if not _is_pattern(self.targets):
      raise ValueError(
          f'{prefix}.targets must be a regular expression, got {self.targets!r}')
    if not self.rank:
      checks.fixed(
          self, prefix, 'with rank=0 (off)', alpha=LoraConfig.alpha, targets=LoraConfig.targets)


def make(model: ModelFns, config: LoraConfig) -> ModelFns:
  """Adds adapters to a model.

  B = 0 initially, so that the outputs are those of the base.

  Args:
    model: the base model.
    config: adapter config; with rank 0 the model itself is returned.

  Returns:
    ModelFns on {'base', 'adapters'}.

  Raises:
    ValueError: a field is out of range; from `init`, the targets match no layer.
  """
  config = dataclasses.replace(config)  # The caller's config is mutable.
  config.validate()
  if not config.rank:
    return model

  def init(key):
    base = model.init(key)
    return {'base': base, 'adapters': init_adapters(config, base, key)}

  def apply(params, tokens, **arguments):
    return model.apply(attach(params, config), tokens, **arguments)

  return ModelFns(init, apply, model.init_cache)


def init_adapters(config: LoraConfig, base: Params, key: Array) -> Params:
  """Draws adapters for a base model, such as one loaded from a checkpoint.

  A is uniform in ±1/√in, as in PEFT (Kaiming initialisation with a = √5); B is 0. Both are
  float32 for any dtype of the base. The draw for one layer does not depend on the other targets.

  Args:
    config: valid adapter config with rank above 0.
    base: the model's parameters, as arrays or `jax.ShapeDtypeStruct`s.
    key: PRNG key; may be the key that initialised the base.

  Returns:
    The adapters, nested like `base`.

  Raises:
    ValueError: the targets match no layer; the message lists the layers of the model.
  """
  layers = dict(_layers(base))
  pattern = re.compile(rf'(?:^|.*/)(?:{config.targets})$')
  targets = {path: shape for path, shape in layers.items() if pattern.match('/'.join(path))}
  if not targets:
    raise ValueError(
        f'config.lora.targets must match a layer, got {config.targets!r}; there are '
        f'{", ".join("/".join(path) for path in layers)}'
    )

  adapters: dict[str, Any] = {}
  for path, shape in targets.items():
    own_key = jax.random.fold_in(key, zlib.crc32('/'.join(('adapters', *path)).encode()))
    node = adapters
    for name in path:
      node = node.setdefault(name, {})
    node.update(_draw(own_key, shape, config.rank))

  return adapters


def attach(params: Params, config: LoraConfig) -> Params:
  """Puts each adapter next to its kernel, where the layers read it, with B times α / r.

  Args:
    params: {'base', 'adapters'}.
    config: adapter config.

  Returns:
    A tree for the base model's `apply`.

  Raises:
    ValueError: there is an adapter for a layer that the base does not have.
  """
  tree = params['base']
  for path, adapter, _ in _adapted(params['base'], params['adapters']):
    scaled = {**adapter, 'lora_b': adapter['lora_b'] * _scale(config)}
    tree = _put(tree, path, {**_at(tree, path), **scaled})
  return tree


def without_adapters(params: Params) -> Params:
  """Turns the adapters off, for a reference policy; copies no array.

  Args:
    params: {'base', 'adapters'}.

  Returns:
    Parameters for the same `apply`; its outputs are the base's bit for bit.
  """
  return {'base': params['base'], 'adapters': {}}


def merge(params: Params, config: LoraConfig) -> Params:
  """Merges adapters into their kernels: W + (α / r) A B.

  Args:
    params: {'base', 'adapters'}.
    config: adapter config.

  Returns:
    A tree for the base model; the dtype of each kernel is unchanged.

  Raises:
    ValueError: a head that is tied to the embedding has an adapter.
  """
  return _add(params['base'], params['adapters'], _scale(config))


def unmerge(merged: Params, adapters: Params, config: LoraConfig) -> Params:
  """The inverse of `merge`, up to rounding.

  Args:
    merged: tree returned by `merge`.
    adapters: the adapters that were merged.
    config: adapter config.

  Returns:
    {'base', 'adapters'}.

  Raises:
    ValueError: see `merge`.
  """
  return {'base': _add(merged, adapters, -_scale(config)), 'adapters': adapters}


def _add(base: Params, adapters: Params, scale: float) -> Params:
  """Returns the base with kernels W + scale · A B, summed in float32."""
  for path, adapter, kernel in _adapted(base, adapters):
    if kernel is None:
      raise ValueError(
          'the adapter of a head that is tied to the embedding cannot be merged, which would '
          'change the embedding: untie the base first (partial.untie, tie_embeddings=False)'
      )
    left, right = adapter['lora_a'], adapter['lora_b']
    if path == ('head',):
      left, right = right, left
    product = jnp.matmul(left, right, precision='highest')
    summed = (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
    base = _put(base, path, {**_at(base, path), 'kernel': summed})
  return base


def _scale(config: LoraConfig) -> float:
  return config.alpha / config.rank


def _draw(key: Array, shape: tuple[int, ...], rank: int) -> dict[str, Array]:
  """Draws A and B for a kernel [N, in, out], or for the kernel of a head, [V, D]."""
  if len(shape) == 2:
    rows, width = shape
    a, b, inputs = (rank, width), (rows, rank), width
  else:
    stack, inputs, outputs = shape
    a, b = (stack, inputs, rank), (stack, rank, outputs)
  bound = inputs**-0.5
  return {
      'lora_a': jax.random.uniform(key, a, jnp.float32, -bound, bound),
      'lora_b': jnp.zeros(b, jnp.float32),
  }


def _layers(base: Params) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
  """Yields the path and kernel shape of every layer that can have an adapter."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(base):
    names = tuple(entry.key for entry in path)
    if names[0] in ('layers', 'last_layers') and names[-1] == 'kernel':
      yield names[:-1], leaf.shape
  if 'head' in base:
    yield ('head',), base['head']['kernel'].shape
  elif 'final_norm' in base and not {'value_head', 'q_head'} & base.keys():
    # A policy whose head is tied to the embedding.
    yield ('head',), base['embedder']['embedding'].shape


def _adapted(base: Params, adapters: Params) -> Iterator[tuple[tuple[str, ...], dict, Any]]:
  """Yields (path, {'lora_a', 'lora_b'}, base kernel or None for a tied head) of each adapter."""
  layers = dict(_layers(base))
  leaves = jax.tree_util.tree_leaves_with_path(adapters)
  for path in dict.fromkeys(tuple(entry.key for entry in path[:-1]) for path, _ in leaves):
    if path not in layers:
      raise ValueError(f'there is an adapter for {"/".join(path)}, which the model does not have')
    yield path, _at(adapters, path), _at(base, path).get('kernel')


def _at(tree: Params, path: tuple[str, ...]) -> dict:
  """Returns the dict at a path, or {} if there is none."""
  for name in path:
    tree = tree.get(name, {})
  return tree


def _put(tree: Params, path: tuple[str, ...], value: Any) -> Params:
  """Returns a copy of the tree with `value` at a path; everything else is shared."""
  if not path:
    return value
  return {**tree, path[0]: _put(tree.get(path[0], {}), path[1:], value)}


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True
