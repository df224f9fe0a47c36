"""RLOO: the policy gradient of whole responses, with a leave-one-out baseline.

Ahmadian, Cremer, Gallé, Fadaee, Kreutzer, Pietquin, Üstün and Hooker, 2024, "Back to basics:
revisiting REINFORCE-style optimization for learning from human feedback in LLMs", arXiv
2402.14740; the estimator is that of Kool, van Hoof and Welling, 2019, "Buy 4 REINFORCE samples,
get a baseline for free".

K responses per prompt; r = s − c ln π_t(y|x)/π_ref(y|x):

  A_i = r_i − 1/(K−1) Σ_{j≠i} r_j,
  ∇ E r = E 1/K Σ_i A_i ∇ ln π_θ(y_i|x),

where log π is the sum over the tokens of the response, stop token included. The mean of the other
samples is independent of y_i, so that the estimate is unbiased; it needs neither a critic nor a
running mean.

The published method takes one step from each batch (`num_epochs` = `num_minibatches` = 1, the
defaults). Further steps are off-policy, which the ratio of whole responses corrects:

  L(θ) = −mean min( ρ A, clip(ρ, 1 − ε, 1 + ε) A ),    ρ = π_θ(y|x) / π_t(y|x),

as in TRL's RLOOTrainer with `num_iterations` above 1. At the first step ρ = 1 and the gradient is
that of −A ln π_θ, so that this loss covers the one-step method too; its *value* is −mean A = 0.

Compared with REINFORCE: a different baseline. Compared with GRPO: whole responses instead of
tokens, no division by the spread of the group, the penalty in the reward. A is K/(K−1) times
r − mean.

Tables: a baseline of every study of experiments/arena/.
"""

import dataclasses
import functools

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import advantages, batches, masking, policy_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """RLOO config.

  Attributes:
    kl_coefficient: c ≥ 0, weight of the penalty in the reward (TRL's RLOOConfig: 0.05).
    samples_per_prompt: K ≥ 2 (TRL's RLOOConfig: 2).
    clip: ε > 0 in the steps after the first (TRL's RLOOConfig: 0.2); infinity never clips.
    temperature: used for sampling and for all log-probs.
    num_epochs: passes over a batch; each is `num_minibatches` optimizer steps.
    num_minibatches: optimizer steps per pass.
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  kl_coefficient: float = 0.05
  samples_per_prompt: int = 2
  clip: float = 0.2
  temperature: float = 1.0
  num_epochs: int = 1
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'temperature')
    checks.at_least(self, '', samples_per_prompt=2, num_epochs=1, num_minibatches=1)
    checks.at_least(self, '', num_micro_batches=1, head_chunk=0)
    checks.interval(self, '', '(0, inf]', 'clip')
    checks.non_negative(self, '', 'kl_coefficient')


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """RLOO as two pure functions; a train step is one iteration.

  Args:
    config: RLOO config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` that π_t sampled, with
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  bounds = dict(clip_low=min(config.clip, 1.0), clip_high=config.clip)
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch):
    mask, weight = batch.rollouts.mask, batch.weight
    log_probs, entropy = score(params['policy'], batch.rollouts)
    log_ratio = masking.masked_sum(log_probs - batch.aux['old_log_probs'], mask, axis=-1)
    losses = policy_losses.clipped_surrogate(log_ratio, batch.aux['advantages'], **bounds)
    clipped = policy_losses.is_clipped(log_ratio, batch.aux['advantages'], **bounds)

    mean = lambda x: masking.masked_mean(x, jnp.broadcast_to(weight[:, None], x.shape))
    return mean(losses), {
        'train/log_ratio': mean(jnp.abs(log_ratio)),
        'train/advantage_size': mean(jnp.abs(batch.aux['advantages'])),
        'train/clip_fraction': mean(clipped.astype(jnp.float32)),
        'train/entropy': masking.masked_mean(entropy, mask * weight[:, None, None]),
    }

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batches.check_samples(batch, config.samples_per_prompt)
    batches.check_reference(batch, config.kl_coefficient)

    batch, dropped = batches.drop_invalid(batch)

    old = step_lib.map_micro_batches(
        lambda rollouts: score(state.params['policy'], rollouts)[0], batch.rollouts,
        num_micro_batches=config.num_minibatches * config.num_micro_batches,
    )
    gap = batches.sampler_gap(old, batch.rollouts, batch.weight)
    # r = s − c ln π_t/π_ref, [P, K].
    rewards = batches.kl_shaped_rewards(batch, old, config.kl_coefficient)
    batch = dataclasses.replace(
        batch, aux={'old_log_probs': old, 'advantages': advantages.rloo(rewards)})

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
