"""π_ref beside a policy that is trained, without a second copy of what the two share.

Where all parameters are trained, the reference is a copy. Adapters leave their base as it was: that
is the reference. Of a policy whose last blocks are trained, those alone are copied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import components, launch, reference_values
from jaxrl_llm.models import partial
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Params, TrainState


class Frozen(NamedTuple):
  """π_ref.

  Attributes:
    of: the policy's parameters as they are trained -> the reference's, as the same network takes
      them. What it gives lives as long as the parameters that it was given.
    fingerprint: of its plain parameters.
    steps: optimizer steps that made it; training counts on from here.
    metrics_offset: bytes of metrics.jsonl that making it has written.
  """

  of: Callable[[Params], Params]
  fingerprint: str
  steps: int
  metrics_offset: int

  def check(self, other: str) -> None:
    """Raises ValueError unless a checkpoint's reference is this one."""
    if other != self.fingerprint:
      raise ValueError(
          f'the checkpoint was trained against the reference {other}, this run has '
          f'{self.fingerprint}; give another --workdir'
      )


def begin(
    run: launch.Run,
    parts: components.Components,
    algorithm: Algorithm,
    finetune: Callable[[], tuple[Params, dict[str, Any]]],
) -> tuple[TrainState, step_lib.CountedJit, Frozen]:
  """The policy at its start, its train step, and the reference.

  Args:
    run: the run.
    parts: what `components.build` made of its config.
    algorithm: trains the policy.
    finetune: makes the reference where none is loaded (`sft.finetune`).

  Returns:
    (state, jitted train step, reference).
  """
  config = run.config
  reference = reference_values.make_reference(run, parts, finetune)
  state, train_step = parts.start(algorithm, reference.start)
  if config.reference_init_from or not (config.lora.rank or config.train_last_layers):
    params = reference.params
    of = lambda policy: params
  elif config.lora.rank:
    of = lambda policy: {'base': policy['base'], 'adapters': {}}
  else:
    branch = partial.branch(state.params['policy'])
    of = lambda policy: {**policy, **branch}
  return state, train_step, Frozen(
      of, reference.fingerprint, reference.steps, reference.metrics_offset)
