"""Selects the parameters that a run trains: all, low-rank adapters, or the last blocks."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrl_llm.models import lora, partial
from jaxrl_llm.types import Array, ModelFns, Params


class Finetuning(NamedTuple):
  """A policy, with the conversions between plain parameters and those that are trained.

  Attributes:
    policy: the network; takes trained and frozen parameters.
    trainable: pattern for `optim.make_optimizer`; None trains all parameters.
    start: (plain parameters, key) -> parameters to train.
    frozen: plain parameters -> the same in the form of `policy`, without copying arrays.
    plain: trained parameters -> plain ones: adapters merged, blocks in one stack.
  """

  policy: ModelFns
  trainable: str | None
  start: Callable[[Params, Array], Params]
  frozen: Callable[[Params], Params]
  plain: Callable[[Params], Params]


def make(
    policy: ModelFns, abstract_params: Params, *, adapters: lora.LoraConfig, last_layers: int
) -> Finetuning:
  """Makes the finetuning setup of `policy`.

  Args:
    policy: the network on plain parameters.
    abstract_params: shapes of the plain parameters.
    adapters: config of the adapters; rank 0 turns them off.
    last_layers: number of last blocks to train with the last norm and the head; 0 trains all.

  Returns:
    The finetuning setup.

  Raises:
    ValueError: if the adapters match no layer or cannot be merged, the model has fewer blocks, or
      its head is tied to the embedding.
  """
  same = lambda params: params

  if adapters.rank:
    start = lambda params, key: {
        'base': params, 'adapters': lora.init_adapters(adapters, params, key)
    }
    plain = lambda params: lora.merge(params, adapters)
    form = Finetuning(
        lora.make(policy, adapters), lora.TRAINABLE, start,
        lambda params: {'base': params, 'adapters': {}}, plain,
    )
  elif last_layers:
    form = Finetuning(
        policy, partial.TRAINABLE, lambda params, key: partial.split(params, last_layers), same,
        partial.join,
    )
  else:
    form = Finetuning(policy, None, lambda params, key: params, same, same)

  # Fail before anything runs if parameters cannot be trained or converted back.
  jax.eval_shape(lambda p: form.plain(form.start(p, jax.random.key(0))), abstract_params)
  return form
