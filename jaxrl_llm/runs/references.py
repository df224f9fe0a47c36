"""The frozen reference π_ref: loaded or fine-tuned, and shared with the policy where possible.

If all parameters are trained, the reference is a copy. Adapters leave their base unchanged, so
that base is the reference. If only the last blocks are trained, only those blocks are copied.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrl_llm.models import lora, partial
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import fingerprint, metrics
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Params, TrainState


@dataclasses.dataclass
class Reference:
  """π_ref, frozen. `start` replaces `of` and `start`.

  Attributes:
    of: the policy's trained parameters -> the reference's, in the frozen form taken by
      `Setup.policy`. The result is valid as long as its argument.
    start: the plain parameters from which the policy starts: those of π_ref, unless
      `reference_init_from` names others. None once the policy has been made from them.
    fingerprint: fingerprint of the plain parameters of π_ref.
    metrics_position: position in metrics.jsonl when π_ref was made.
    steps: optimizer steps that made π_ref; training continues the count.
    seconds: time it took to make π_ref.
  """

  of: Callable[[Params], Params]
  start: Params | None
  fingerprint: str
  metrics_position: metrics.Position
  steps: int
  seconds: float

  @property
  def params(self) -> Params:
    """The reference's own parameters, while it shares none with the policy (before `start`)."""
    return self.of({})

  def check(self, other: str) -> None:
    """Raises ValueError unless the fingerprint in a checkpoint is that of this reference."""
    if other != self.fingerprint:
      raise ValueError(
          f'the checkpoint was trained against the reference {other}, this run has '
          f'{self.fingerprint}; give another --workdir'
      )


def make_reference(
    setup: setup_lib.Setup,
    finetune: Callable[[], tuple[Params, dict[str, Any]]],
) -> Reference:
  """Loads π_ref, or fine-tunes it; it shares no parameters with the policy.

  Args:
    setup: the run's setup, from `setup_lib.build`.
    finetune: makes the reference if none is loaded (`supervised.finetune`).

  Returns:
    The reference.
  """
  config = setup.config
  if config.policy_init_from:
    start = plain = setup.initial_params()
    if config.reference_init_from:
      plain = setup.load_same_model(config.reference_init_from, 'config.reference_init_from')
    frozen = setup.finetuning.frozen(plain)
    return Reference(lambda policy: frozen, start, fingerprint.of_params(plain), [], 0, 0.0)

  start, metadata = finetune()
  frozen = setup.finetuning.frozen(start)
  return Reference(
      lambda policy: frozen, start, metadata['fingerprint'], metadata['metrics_position'],
      config.sft.steps, metadata['seconds'],
  )


def begin(
    setup: setup_lib.Setup,
    algorithm: Algorithm,
    finetune: Callable[[], tuple[Params, dict[str, Any]]],
    *,
    others: Callable[[Params], Params] | None = None,
) -> tuple[TrainState, step_lib.CountedJit, Reference]:
  """Makes the initial train state, the train step, and the reference without shared parameters.

  Args:
    setup: the run's setup, from `setup_lib.build`.
    algorithm: the algorithm that trains the policy.
    finetune: makes the reference if none is loaded (`supervised.finetune`).
    others: see `Setup.start`.

  Returns:
    (state, jitted train step, reference).
  """
  reference = make_reference(setup, finetune)
  return *start(setup, algorithm, reference, others=others), reference


def start(
    setup: setup_lib.Setup, algorithm: Algorithm, reference: Reference, *,
    others: Callable[[Params], Params] | None = None,
) -> tuple[TrainState, step_lib.CountedJit]:
  """Makes the initial train state and the train step; the policy takes over shared parameters.

  `reference` then shares the untrained parameters of the policy. The frozen base of adapters is
  moved into the state, not copied: arrays that were read from `reference` before are deleted.

  Args:
    setup: the run's setup, from `setup_lib.build`.
    algorithm: the algorithm that trains the policy.
    reference: returned by `make_reference`; changed in place.
    others: see `Setup.start`.

  Returns:
    (state, jitted train step).
  """
  has_own_copy = bool(setup.config.reference_init_from)
  state, train_step = setup.start(
      algorithm, reference.start, others=others,
      donate=has_own_copy or bool(setup.finetuning.lora.rank))
  reference.start = None

  if has_own_copy:
    return state, train_step
  if setup.finetuning.lora.rank:
    reference.of = lora.without_adapters
  elif setup.finetuning.last_layers:
    branch = partial.branch(state.params['policy'])
    reference.of = lambda policy: {**policy, **branch}
  return state, train_step
