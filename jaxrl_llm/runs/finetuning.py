"""Selects the parameters that a run trains: all, low-rank adapters, or the last blocks.

The score head of a reward model is trained with either part: it is new, and small.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.models import partial
from jaxrl_llm.types import Array, ModelFns, Params


class Finetuning(NamedTuple):
  """A policy or a reward model, with conversions from plain to trained parameters and back.

  Attributes:
    policy: the network; takes trained and frozen parameters.
    trainable: pattern for `optim.make_optimizer`; None trains all parameters.
    start: (plain parameters, key) -> parameters to train.
    frozen: plain parameters -> the same in the form of `policy`, without copying arrays.
    plain: trained parameters -> plain ones: adapters merged, blocks in one stack.
    lora: config of the adapters; rank 0 without them.
    last_layers: number of last blocks that are trained; 0 if all are, or only adapters.
  """

  policy: ModelFns
  trainable: str | None
  start: Callable[[Params, Array], Params]
  frozen: Callable[[Params], Params]
  plain: Callable[[Params], Params]
  lora: lora_lib.LoraConfig
  last_layers: int


def make(
    policy: ModelFns, abstract_params: Params, *, lora: lora_lib.LoraConfig, last_layers: int
) -> Finetuning:
  """Makes the finetuning setup of `policy`.

  Args:
    policy: the network on plain parameters; a policy or a reward model.
    abstract_params: shapes of the plain parameters.
    lora: config of the adapters; rank 0 turns them off.
    last_layers: number of last blocks to train with the last norm and the head; 0 trains all.

  Returns:
    The finetuning setup.

  Raises:
    ValueError: if the adapters match no layer or cannot be merged, the model has fewer blocks, or
      its head is tied to the embedding.
  """
  same = lambda params: params

  # Functions that convert between plain parameters and those that are trained.
  if lora.rank:
    trainable = lora_lib.TRAINABLE
    if 'value_head' in abstract_params:
      trainable = rf'{trainable}|base/value_head/.*'
    finetuning = Finetuning(
        lora_lib.make(policy, lora), trainable,
        start=lambda params, key: {
            'base': params, 'adapters': lora_lib.init_adapters(lora, params, key)},
        frozen=lambda params: {'base': params, 'adapters': {}},
        plain=lambda params: lora_lib.merge(params, lora), lora=lora, last_layers=0,
    )
  elif last_layers:
    finetuning = Finetuning(
        policy, partial.TRAINABLE,
        start=lambda params, key: partial.split(params, last_layers), frozen=same,
        plain=partial.join, lora=lora, last_layers=last_layers,
    )
  else:
    finetuning = Finetuning(
        policy, None, start=lambda params, key: params, frozen=same, plain=same, lora=lora,
        last_layers=0,
    )

  # Fail before anything runs if parameters cannot be trained or converted back.
  jax.eval_shape(
      lambda p: finetuning.plain(finetuning.start(p, jax.random.key(0))), abstract_params)
  return finetuning
