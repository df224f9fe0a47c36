"""DPO: fits a policy to preferences as if it were a reward model.

Rafailov, Sharma, Mitchell, Ermon, Manning and Finn, 2023, "Direct preference optimization: your
language model is secretly a reward model", arXiv 2305.18290.

The policy that maximises E r − β KL(π ‖ π_ref) is π ∝ π_ref e^{r/β}: it implies the reward
β ln π/π_ref, up to a constant per prompt. Inserted into the Bradley-Terry model of preferences,

  L(θ) = −mean ln σ(β D_θ),    D_θ = ln π_θ/π_ref (y_w|x) − ln π_θ/π_ref (y_l|x),

where log π is the sum over the tokens of the response, stop token included. There is no reward
model, no sampling and no critic. `loss` replaces −ln σ(β D) by a relative
(`rl.preference_losses`), and `rpo_weight` w adds −w ln π_θ(y_w|x), which keeps the preferred
response likely: without it both may become less likely. This term is a sum over tokens, as in the
star-graph baseline of Q# (Zhou et al., 2025, arXiv 2502.20548; released code jinpz/q_sharp,
weight 1).

The order of the rewards defines the preference: (1, 0) for labelled data, or the rewards of a
scorer. So three published procedures are one train step with different batches:
  offline    pairs of a data set, labelled once;
  online     pairs sampled from the policy before every step;
  iterative  pairs sampled from it once per iteration, and reused for the steps of that iteration.
Whether an iteration compares with π_ref or with the policy π_t at its start is not confirmed for
the published runs; `reference` selects it. 'policy' is θ at the start of a train step; where
several train steps share an iteration, pass π_t's log-probs as those of a 'fixed' reference.

Departures, and why:
- A tie carries no preference: a tied pair has weight 0, and is counted in `train/ties`.

Tables: a baseline of the studies of experiments/arena/.
"""

import dataclasses
import functools

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking, preference_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, TrainState

_SMOOTHED = ('conservative', 'robust')


@dataclasses.dataclass
class Config:
  """DPO config; the default β is that of the star-graph baseline in Q#'s released code.

  Attributes:
    loss: 'sigmoid' (DPO), 'ipo', 'hinge' (SLiC-HF), 'conservative' (cDPO) or 'robust' (rDPO).
    beta: β > 0, τ of 'ipo'; larger stays closer to the reference.
    label_smoothing: ε in [0, 1/2) of 'conservative' and 'robust': fraction of wrong labels.
    rpo_weight: w ≥ 0, weight of −ln π_θ of the preferred response.
    reference: 'fixed' (`batch.reference_log_probs`), or 'policy': frozen at the start of the step.
    samples_per_prompt: 2; more with `pairs='best_worst'`.
    pairs: 'all' (the two samples), or 'best_worst' by reward out of more samples.
    temperature: used for all log-probs, and for sampling where pairs are sampled.
    num_epochs: passes over a batch; each is `num_minibatches` optimizer steps.
    num_minibatches: optimizer steps per pass.
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  loss: str = 'sigmoid'
  beta: float = 0.1
  label_smoothing: float = 0.0
  rpo_weight: float = 0.0
  reference: str = 'fixed'
  samples_per_prompt: int = 2
  pairs: str = 'all'
  temperature: float = 1.0
  num_epochs: int = 1
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'beta', 'temperature')
    checks.at_least(self, '', num_epochs=1, num_minibatches=1, num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', loss=('sigmoid', 'ipo', 'hinge', *_SMOOTHED))
    checks.one_of(self, '', reference=('fixed', 'policy'), pairs=('all', 'best_worst'))
    checks.at_least(self, '', samples_per_prompt=2)
    if self.pairs == 'all':
      checks.fixed(self, '', "with pairs='all'", samples_per_prompt=2)
    checks.interval(self, '', '[0, 0.5)', 'label_smoothing')
    if self.loss not in _SMOOTHED:
      checks.fixed(self, '', f'with loss={self.loss!r}', label_smoothing=0)
    checks.non_negative(self, '', 'rpo_weight')


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """DPO as two pure functions; a train step is `num_epochs` passes over its pairs.

  Args:
    config: DPO config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` whose rewards [P, K] define the
    preference: only their order is read. `reference_log_probs` may be None with
    `reference='policy'`. The log-probs of responses that were not sampled here are NaN. The metric
    train/initial_log_ratio is the distance from the reference at the start of the step: 0 for
    'policy'.

  Raises:
    ValueError: if a config field is out of range; from `train_step`, if the batch does not match
      the config.
  """
  config.validate()
  pair_loss = {
      'sigmoid': functools.partial(preference_losses.dpo_loss, beta=config.beta),
      'ipo': functools.partial(preference_losses.ipo_loss, tau=config.beta),
      'hinge': functools.partial(preference_losses.hinge_loss, beta=config.beta),
      'conservative': functools.partial(
          preference_losses.conservative_dpo_loss, beta=config.beta,
          label_smoothing=config.label_smoothing),
      'robust': functools.partial(
          preference_losses.robust_dpo_loss, beta=config.beta,
          label_smoothing=config.label_smoothing),
  }[config.loss]

  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def reference_of(params, batch: Batch) -> Array:
    """ln π_ref [P, 2, T], a constant."""
    if config.reference == 'policy':
      return step_lib.map_micro_batches(
          lambda rollouts: score(params['policy'], rollouts)[0], batch.rollouts,
          num_micro_batches=config.num_minibatches * config.num_micro_batches,
      )
    if batch.reference_log_probs is None:
      raise ValueError("reference='fixed' needs batch.reference_log_probs, got None")
    return batch.reference_log_probs

  def loss_fn(params, batch: Batch):
    mask = batch.rollouts.mask
    log_probs, _ = score(params['policy'], batch.rollouts)

    def split(by_token):
      total = masking.masked_sum(by_token, mask, axis=-1)
      return preference_losses.split_by_preference(total, batch.rewards)

    chosen, rejected, decided = split(log_probs - batch.reference_log_probs)
    losses = pair_loss(chosen, rejected)
    if config.rpo_weight:
      losses = losses - config.rpo_weight * split(log_probs)[0]

    weight = batch.weight * decided
    mean = functools.partial(batches.mean_over_prompts, weight=weight)
    margin = config.beta * (chosen - rejected)

    return mean(losses), {
        'train/accuracy': mean((margin > 0).astype(jnp.float32)),
        'train/margin': mean(margin),
        'train/chosen_log_ratio': mean(chosen),
        'train/rejected_log_ratio': mean(rejected),
        'train/log_ratio': mean((jnp.abs(chosen) + jnp.abs(rejected)) / 2, weight=batch.weight),
        'train/ties': mean(1 - decided, weight=batch.weight),
        'train/sampler_gap': batches.sampler_gap(log_probs, batch.rollouts, batch.weight),
    }

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batches.check_samples(batch, config.samples_per_prompt)
    batch, dropped = batches.drop_invalid(batch)
    if config.pairs == 'best_worst':
      batch = batches.best_and_worst(batch)

    batch = dataclasses.replace(batch, reference_log_probs=reference_of(state.params, batch))

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    gap = first['train/sampler_gap']
    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
