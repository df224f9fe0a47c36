"""Partial fine-tuning: the last blocks, the last norm and the head are trained, the rest is frozen.

The blocks that are trained stand apart, `last_layers` [n, ...] beside `layers` [N - n, ...], so
that nothing is kept or computed for the others: no gradient, no optimizer state, no backward pass.
This is how REBEL (Gao et al., 2024, arXiv 2404.16767) and LangPTune (Gao et al., 2024, arXiv
2410.18870) train their larger models, with n = 4.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.types import ModelFns, Params

_HEADS = ('head', 'value_head', 'q_head')

# What `optim.make_optimizer` trains.
TRAINABLE = rf'(last_layers|final_norm|{"|".join(_HEADS)})/.*'


def make(model: ModelFns, num_last: int) -> ModelFns:
  """The same network on split parameters.

  Args:
    model: any of models/ that is built on the decoder trunk.
    num_last: n, blocks that are trained; below the number of blocks.

  Returns:
    ModelFns; only `init` differs.

  Raises:
    ValueError: from `init`, as `split`.
  """
  return model._replace(init=lambda key: split(model.init(key), num_last))


def split(params: Params, num_last: int) -> Params:
  """Puts the last blocks apart.

  Args:
    params: with `layers` [N, ...].
    num_last: n, in [1, N - 1].

  Returns:
    The same parameters with `layers` [N - n, ...] and `last_layers` [n, ...].

  Raises:
    ValueError: n is out of range; the blocks stand apart already; or the head is the embedding,
      which the frozen blocks read.
  """
  if 'last_layers' in params:
    raise ValueError('the last layers of these parameters stand apart already')
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
  """The part that is trained, copied: {**params, **branch} later is the network as it was.

  A frozen reference that shares its trunk with the policy.

  Args:
    params: what `split` gave.

  Returns:
    {'last_layers', 'final_norm', the head}, arrays of their own.
  """
  return jax.tree.map(
      jnp.copy, {name: params[name] for name in ('last_layers', 'final_norm', *_HEADS)
                 if name in params}
  )


def untie(params: Params) -> Params:
  """A head of its own, equal to the embedding, for a model with tie_embeddings=False.

  Args:
    params: of a policy with tie_embeddings=True.

  Returns:
    The same parameters and head/kernel, a copy.

  Raises:
    ValueError: there is a head already.
  """
  if params.keys() & set(_HEADS):
    raise ValueError('the head of these parameters is not tied to the embedding')
  return {**params, 'head': {'kernel': jnp.copy(params['embedder']['embedding'])}}
