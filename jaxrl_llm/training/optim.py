"""Optimizers and learning-rate schedules, from one typed config."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm import checks
from jaxrl_llm.types import Params

NAMES = ('adamw', 'adam')
SCHEDULES = ('constant', 'linear', 'cosine')


@dataclasses.dataclass
class OptimizerConfig:
  """Adam or AdamW with a schedule. Every field has an effect or is rejected.

  Attributes:
    name: 'adamw' (decoupled weight decay) or 'adam' (none).
    learning_rate: the peak learning rate.
    schedule: 'constant', 'linear' or 'cosine'; applies after the warm-up.
    warmup_steps: number of steps over which the rate rises linearly: step s (from 0) uses
      (s + 1) / warmup_steps of the peak, so that no step is wasted on a rate of 0.
    total_steps: where a decaying schedule ends; 0 means the run's length (`for_run`) and is the
      only value allowed for 'constant'.
    final_fraction: fraction of the peak rate at the end of a decaying schedule, in [0, 1].
    b1: decay of the first moment, in [0, 1).
    b2: decay of the second moment, in [0, 1).
    eps: added to the root of the second moment. It must stay far below the gradient's entries,
      which some losses scale down by a factor of a thousand.
    weight_decay: per unit of learning rate, on every trained parameter; 0 for 'adam'.
    max_grad_norm: the global norm to which gradients are clipped; 0 turns clipping off.
  """

  name: str = 'adamw'
  learning_rate: float = 1e-3
  schedule: str = 'constant'
  warmup_steps: int = 0
  total_steps: int = 0
  final_fraction: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0

  def validate(self, prefix: str = 'config.optimizer') -> None:
    """Raises a one-line ValueError if a field is out of range or would be ignored.

    Args:
      prefix: path of this config, for the message.
    """
    checks.one_of(self, prefix, name=NAMES, schedule=SCHEDULES)
    checks.positive(self, prefix, 'learning_rate', 'eps')
    checks.at_least(self, prefix, warmup_steps=0, total_steps=0)
    checks.interval(self, prefix, '[0, 1)', 'b1', 'b2')
    checks.non_negative(self, prefix, 'weight_decay', 'max_grad_norm')
    checks.fraction(self, prefix, 'final_fraction')

    if self.name == 'adam':
      checks.fixed(self, prefix, "with name='adam' (adamw has it)", weight_decay=0)

    if self.schedule == 'constant':
      checks.fixed(self, prefix, "with schedule='constant'", total_steps=0, final_fraction=0)
    elif self.total_steps and self.total_steps <= self.warmup_steps:
      raise ValueError(
          f'{prefix}.total_steps must be more than warmup_steps ({self.warmup_steps}), got '
          f'{self.total_steps}'
      )


def for_run(config: OptimizerConfig, num_steps: int) -> OptimizerConfig:
  """Returns the config with `total_steps` set to the length of the run, if it was left at 0.

  Args:
    config: the config as the user gave it.
    num_steps: optimizer steps of the run.

  Returns:
    A copy (with the same values for a constant schedule).
  """
  if config.schedule == 'constant' or config.total_steps:
    return dataclasses.replace(config)
  return dataclasses.replace(config, total_steps=num_steps)


def learning_rate_at(config: OptimizerConfig, step: Any) -> Any:
  """Returns the learning rate of the update from `step` to `step` + 1.

  With w = warmup_steps, n = total_steps, f = final_fraction and u = (s - w) / (n - w) in [0, 1]:

    s < w: η (s + 1) / w;  constant: η;  linear: η (f + (1 - f)(1 - u));
    cosine: η (f + (1 - f)(1 + cos πu) / 2).

  Beyond n the rate stays at η f.

  Args:
    config: a valid config, with `total_steps` set if the schedule decays.
    step: optimizer steps already taken; a Python or NumPy integer, or a JAX scalar.

  Returns:
    A float for a host integer, a float32 scalar for a JAX one.

  Raises:
    ValueError: if a decaying schedule has no end.
  """
  on_device = isinstance(step, jax.Array)
  xp = jnp if on_device else np

  if config.schedule == 'constant':
    decay = 1.0
  else:
    if config.total_steps <= config.warmup_steps:
      raise ValueError(
          f'config.optimizer.total_steps must be more than warmup_steps ({config.warmup_steps}) '
          f'for a {config.schedule} schedule, got {config.total_steps}'
      )

    span = config.total_steps - config.warmup_steps
    progress = xp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
    shape = 1 - progress if config.schedule == 'linear' else (1 + xp.cos(xp.pi * progress)) / 2
    decay = config.final_fraction + (1 - config.final_fraction) * shape

  if config.warmup_steps:
    rising = (step + 1) / config.warmup_steps
    decay = xp.where(step < config.warmup_steps, rising, decay)

  rate = config.learning_rate * decay
  return jnp.asarray(rate, jnp.float32) if on_device else float(rate)


class PartialOptimizer(optax.GradientTransformation):
  """An optimizer of some of the parameters; the others are frozen.

  A frozen leaf is None in the optimizer's state, in updates, and in gradients computed by
  `training.step`. It is excluded from the norm used for gradient clipping.
  """

  def __new__(cls, inner: optax.GradientTransformation, trainable: str):
    """Restricts an optimizer.

    Args:
      inner: the optimizer of the trained parameters.
      trainable: a regular expression over parameter paths, such as 'policy/head/kernel'. It
        matches whole names at the end of a path, as in sharding rules.

    Raises:
      ValueError: if the expression is invalid; later, if no parameter matches it.
    """
    try:
      pattern = re.compile(rf'(?:^|.*/)(?:{trainable})$')
    except re.error as error:
      raise ValueError(f'trainable must be a regular expression, got {trainable!r}') from error

    def select(tree):
      keep = lambda path, leaf: leaf if pattern.match(_name(path)) else None
      selected = jax.tree_util.tree_map_with_path(keep, tree)
      if not jax.tree.leaves(selected):
        raise ValueError(f'trainable matches no parameter, got {trainable!r}')
      return selected

    def update(gradients, state, params):
      return inner.update(select(gradients), state, select(params))

    self = super().__new__(cls, lambda params: inner.init(select(params)), update)
    self._select = select
    return self

  def select(self, params: Params) -> Params:
    """Returns the parameters with frozen ones replaced by None."""
    return self._select(params)


def make_optimizer(
    config: OptimizerConfig, *, trainable: str | None = None
) -> optax.GradientTransformation:
  """Makes an optimizer: clipping by global norm, then Adam or AdamW with the schedule.

  m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,  θ ← θ - η (m̂ / (√v̂ + ε) + λθ).

  Args:
    config: the optimizer config; validated here.
    trainable: pattern of the trained parameters, see `PartialOptimizer`; None for all of them.
      `models.lora.TRAINABLE` and `models.partial.TRAINABLE` are such patterns.

  Returns:
    The transformation. Its state counts the steps for the schedule.

  Raises:
    ValueError: if the config is invalid, a decaying schedule has no end, or `trainable` is not a
      regular expression.

  References:
    Kingma and Ba 2015, algorithm 1 (arXiv 1412.6980); Loshchilov and Hutter 2019, algorithm 2
    (arXiv 1711.05101).
  """
  config = dataclasses.replace(config)  # The caller's config is mutable.
  config.validate()
  learning_rate_at(config, 0)  # Raises here rather than in the first traced step.

  schedule = lambda count: learning_rate_at(config, count)
  transformations = []
  if config.max_grad_norm:
    transformations.append(optax.clip_by_global_norm(config.max_grad_norm))
  if config.name == 'adamw':
    transformations.append(
        optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps,
                    weight_decay=config.weight_decay))
  else:
    transformations.append(optax.adam(schedule, b1=config.b1, b2=config.b2, eps=config.eps))

  optimizer = optax.chain(*transformations)
  return optimizer if trainable is None else PartialOptimizer(optimizer, trainable)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
