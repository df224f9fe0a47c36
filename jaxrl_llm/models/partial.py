"""Partial fine-tuning: trains the last blocks, the last norm and the head, and freezes the rest.

The trained blocks are stored separately, `last_layers` [n, ...] next to `layers` [N - n, ...], so
that the frozen blocks need no gradient, no optimizer state and no backward pass.
REBEL (Gao et al., 2024, arXiv 2404.16767) and LangPTune (Gao et al., 2024, arXiv 2410.18870)
train their larger models this way, with n = 4.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import ModelFns, Params

_HEADS = ('head', 'value_head', 'q_head')

# The parameters for `optim.make_optimizer` to train.
TRAINABLE = rf'(last_layers|final_norm|{"|".join(_HEADS)})/.*'


def make(model: ModelFns, num_last: int) -> ModelFns:
  """The same network on split parameters.

  Args:
    model: any model from models/ that is built on the decoder trunk.
    num_last: n, number of trained blocks; less than the total number of blocks.

  Returns:
    ModelFns; only `init` differs.

  Raises:
    ValueError: from `init`, as `split`.
  """
  return model._replace(init=lambda key: split(model.init(key), num_last))


def split(params: Params, num_last: int) -> Params:
  """Separates the last blocks.

  Args:
    params: parameters with `layers` [N, ...].
    num_last: n, in [1, N - 1].

  Returns:
    The same parameters with `layers` [N - n, ...] and `last_layers` [n, ...].

  Raises:
    ValueError: n is out of range; the blocks are already separate; or the head is tied to the
      embedding, which the frozen blocks read.
  """
  if 'last_layers' in params:
    raise ValueError('the last layers of these parameters are already split off')
  if not params.keys() & set(_HEADS):
    raise ValueError(
        'the last layers cannot be trained with a head that is tied to the embedding, which the '
        'frozen ones read: untie it (partial.untie, tie_embeddings=False)'
    )

  depth = jax.tree.leaves(params['layers'])[0].shape[0]
  if not 0 < num_last < depth:
    raise ValueError(
        f'the number of last layers to train must be in [1, {depth - 1}] for a model of {depth}, '
        f'got {num_last}'
    )

  cut = lambda part: jax.tree.map(lambda leaf: leaf[part], params['layers'])
  return {
      **params, 'layers': cut(slice(-num_last)), 'last_layers': cut(slice(-num_last, None)),
  }


def join(params: Params) -> Params:
  """The inverse of `split`, bit for bit."""
  rest = {name: value for name, value in params.items() if name != 'last_layers'}
  stack = lambda *parts: jnp.concatenate(parts)
  return {**rest, 'layers': jax.tree.map(stack, params['layers'], params['last_layers'])}


def branch(params: Params) -> Params:
  """Copies the trained part: {**params, **branch} later restores the network of this moment.

  It serves as a frozen reference that shares its trunk with the policy.

  Args:
    params: parameters from `split`.

  Returns:
    {'last_layers', 'final_norm', the head}, as copies.
  """
  return jax.tree.map(
      jnp.copy, {name: params[name] for name in ('last_layers', 'final_norm', *_HEADS)
                 if name in params}
  )


def untie(params: Params) -> Params:
  """Adds a separate head, equal to the embedding, for a model with tie_embeddings=False.

  Args:
    params: parameters of a policy with tie_embeddings=True.

  Returns:
    The same parameters plus head/kernel, a copy of the embedding.

  Raises:
    ValueError: there is already a head.
  """
  if params.keys() & set(_HEADS):
    raise ValueError('the head of these parameters is not tied to the embedding')
  return {**params, 'head': {'kernel': jnp.copy(params['embedder']['embedding'])}}
