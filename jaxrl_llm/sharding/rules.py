"""Sharding of parameters: one ordered table of (path pattern, PartitionSpec).

The table is applied to the whole abstract `TrainState`. A pattern is matched against the last
names of a leaf's path (whole names), so that Adam's moments, whose paths end like their
parameter's, are sharded like it. The first match applies. There is no catch-all: a leaf that no
rule covers is an error that names it.

The axis of stacked layers comes first, [N, ...], and is never split. A kernel that widens (D to
heads or F) is split as (fsdp, tensor), one that narrows as (tensor, fsdp): between the two an
activation is split only over tensor, and one reduction per block remains.

A rule can list alternatives; the first one that divides the leaf is used. Only the rules of the
vocabulary do: its size depends on the tokenizer (GPT-2's 50257 is odd), and it must fit any mesh.
Where tensor does not divide V, it splits D together with fsdp; where that does not divide D,
tensor splits nothing. Every other size must be a multiple of the devices that split it.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

P = PartitionSpec
Rules = Sequence[tuple[str, PartitionSpec | Sequence[PartitionSpec]]]

# A stack of blocks; the last blocks can be a separate stack.
_WIDENS = r'(last_)?layers/(attention/(query|key|value)|mlp/(gate|up))'  # D to E = H*h or F
_NARROWS = r'(last_)?layers/(attention/output|mlp/down)'  # E to D

# One row per token of the vocabulary, [V, D]. With the other order, (fsdp, tensor) along D, the
# partitioner would replicate the looked-up embeddings, [B, T, D], on some meshes.
_TOKEN_ROWS = (P('tensor', 'fsdp'), P(None, ('tensor', 'fsdp')), P(None, 'fsdp'))

# Trees of `models/`: decoders with their heads and adapters of rank r, and encoders.
DECODER_RULES: Rules = (
    (r'embedder/embedding', _TOKEN_ROWS),  # [V, D]
    (r'embedder/(position|type)_embedding', P(None, 'fsdp')),  # [S, D]
    (rf'{_WIDENS}/kernel', P(None, 'fsdp', 'tensor')),  # [N, D, E]
    (rf'{_WIDENS}/bias', P(None, 'tensor')),  # [N, E]
    (rf'{_WIDENS}/lora_a', P(None, 'fsdp', None)),  # [N, D, r]; r may be too small to split.
    (rf'{_WIDENS}/lora_b', P(None, None, 'tensor')),  # [N, r, E]
    (rf'{_NARROWS}/kernel', P(None, 'tensor', 'fsdp')),  # [N, E, D]
    (rf'{_NARROWS}/bias', P(None, None)),  # [N, D]
    (rf'{_NARROWS}/lora_a', P(None, 'tensor', None)),  # [N, E, r]
    (rf'{_NARROWS}/lora_b', P(None, None, 'fsdp')),  # [N, r, D]
    (r'(last_)?layers/(attention|mlp)(_post)?_norm/(scale|bias)', P(None, None)),  # [N, D]
    (r'(last_)?layers/attention/(query|key)_norm/scale', P(None, None)),  # [N, h]
    (r'(embedding|final)_norm/(scale|bias)', P(None)),  # [D]
    (r'(q_)?head/kernel', _TOKEN_ROWS),  # [V, D]
    (r'(q_)?head/bias', (P('tensor'), P(None))),  # [V]
    (r'head/lora_a', P(None, 'fsdp')),  # [r, D]
    (r'head/lora_b', (P('tensor', None), P(None, None))),  # [V, r]
    (r'value_head/kernel', P()),  # [M, D]; M, often 1, is too small to split.
    (r'value_head/bias', P()),  # [M]
)

# Scalars of a TrainState and of optax: step and base key, and the optimizer's counts.
STATE_RULES: Rules = (
    (r'^step', P()),
    (r'^key', P()),
    (r'^opt_state/(.*/)?count', P()),
    (r'^aux/rewards/(total|weight)', P()),  # REINFORCE's running baseline.
)


def shardings(mesh: Mesh, abstract_tree: Any, *, rules: Rules = (*STATE_RULES, *DECODER_RULES)):
  """Returns the sharding of every leaf.

  Args:
    mesh: a mesh with the axes `mesh.AXES`.
    abstract_tree: a `TrainState` or parameters; arrays or `jax.ShapeDtypeStruct`s.
    rules: the table. An algorithm with its own arrays in `aux` puts its rules before these.

  Returns:
    A tree of `NamedSharding`s, with the structure of `abstract_tree`.

  Raises:
    ValueError: naming the leaf, if no rule matches it, its rank does not fit the rule's, or a
      dimension is not a multiple of the devices that split it (by the last alternative).
  """
  compiled = [
      (re.compile(rf'(?:^|.*/)(?:{pattern})$'), (spec,) if isinstance(spec, P) else spec)
      for pattern, spec in rules
  ]

  def choose(path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, specs in compiled:
      if pattern.match(name):
        for spec in specs:
          misfit = _misfit(mesh, name, leaf.shape, spec)
          if not misfit:
            return NamedSharding(mesh, spec)
        raise ValueError(misfit)
    raise ValueError(f'no sharding rule matches {name}, shape {list(leaf.shape)}')

  return jax.tree_util.tree_map_with_path(choose, abstract_tree)


def abstract(tree: Any, tree_shardings: Any) -> Any:
  """Shapes, dtypes and shardings of a tree, as the target for restoring a checkpoint.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s (`jax.eval_shape` of an init function).
    tree_shardings: shardings with the structure of `tree`.

  Returns:
    `jax.ShapeDtypeStruct`s.
  """
  return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      tree,
      tree_shardings,
  )


def _misfit(mesh: Mesh, name: str, shape: tuple[int, ...], spec: PartitionSpec) -> str:
  """Explains why a spec does not fit a leaf; '' if it does."""
  if len(spec) > len(shape):
    return f'{name} has shape {list(shape)}, too few axes for its rule {spec}'
  for size, axes in zip(shape, spec):
    axes = () if axes is None else (axes if isinstance(axes, tuple) else (axes,))
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
      return (
          f'{name}, shape {list(shape)}, cannot be sharded: {size} must be divisible by mesh axis '
          f'{"x".join(axes)} ({parts}) (config.mesh)')
  return ''
