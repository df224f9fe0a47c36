"""Which parameters a run trains: all of them, low-rank adapters, or the last blocks."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrl_llm.models import lora, partial
from jaxrl_llm.types import Array, ModelFns, Params


class Finetuning(NamedTuple):
  """A policy whose parameters may come in the form in which they are trained.

  Attributes:
    policy: takes trained and frozen parameters alike.
    trainable: for `optim.make_optimizer`; None trains all.
    start: (plain parameters, key) -> parameters to train.
    frozen: plain parameters -> the same for `policy`, no array copied.
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
  """The form in which `policy` is trained.

  Args:
    policy: on plain parameters.
    abstract_params: their shapes.
    adapters: rank 0 is off.
    last_layers: blocks that are trained with the last norm and the head; 0 trains all.

  Returns:
    The form.

  Raises:
    ValueError: the adapters match no layer or cannot be merged again, or the model has no such
      blocks or a head that is tied to the embedding.
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
  # What cannot be trained, or not be put together again, is found out before anything runs.
  jax.eval_shape(lambda p: form.plain(form.start(p, jax.random.key(0))), abstract_params)
  return form
