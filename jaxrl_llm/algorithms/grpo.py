"""GRPO: PPO's token-wise surrogate with a group baseline instead of a critic, and its variants.

Shao, Wang, Zhu, Xu, Song, Bi, Zhang, Zhang, Li, Wu and Guo, 2024, "DeepSeekMath: pushing the
limits of mathematical reasoning in open language models", arXiv 2402.03300, section 4.

K responses per prompt, one advantage for all tokens of a response:

  A_i = (r_i − mean(r)) / (std(r) + 1e-6),
  L(θ) = mean [ −min( ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A ) + c k₃ ],
  ρ_t = π_θ/π_t (y_t|x, y_<t),    k₃ = π_ref/π_θ − ln(π_ref/π_θ) − 1 ≥ 0,

where `normalisation` selects the mean over tokens. The penalty is in the loss, and the gradient
passes through it: in expectation over y ∼ π_θ it is the gradient of KL(π_ref ‖ π_θ), though the
value is that of KL(π_θ ‖ π_ref) (`divergences.k3`). In the steps after the first it is averaged
over π_t's samples without a ratio, as published.

| | GRPO | DAPO | Dr. GRPO |
|---|---|---|---|
| `advantage_scale` | 'std' | 'std' | 'none' |
| `normalisation` | 'response' | 'token' | 'constant' |
| `clip_low`, `clip_high` | equal | 0.2, 0.28 | equal |
| `kl_coefficient` | 0.04 | 0 | 0 |

(Yu et al., 2025, DAPO, arXiv 2503.14476; Liu et al., 2025, "Understanding R1-Zero-like training",
arXiv 2503.20783. DAPO's dynamic sampling and its penalty on long answers belong to the sampler and
to the reward.) Division by the spread gives the largest weight to prompts that are nearly solved
or nearly hopeless; 'response' gives a small weight to long wrong answers.

The standard deviation is the unbiased one plus 1e-6, as in verl's released code; a group of equal
rewards has advantage 0. A group of one sample has nothing to compare with: it uses mean 0 and
spread 1, as in verl, so that A = r.

Tables: a baseline of experiments/arena/, addition and summaries.
"""

import dataclasses
import functools

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import advantages, batches, divergences, masking, policy_losses, scoring
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, ModelFns, TrainState


@dataclasses.dataclass
class Config:
  """GRPO config.

  Attributes:
    advantage_scale: 'std', 'population_std' or 'none'.
    normalisation: 'response', 'token' or 'constant' (`policy_losses.mean_over_tokens`); 'constant'
      divides by the sampler's T slots, so keep T the same throughout a run.
    clip_low: ε_low in [0, 1] (verl and TRL: 0.2).
    clip_high: ε_high ≥ 0 (verl and TRL: 0.2; DAPO: 0.28); infinity never clips.
    kl_coefficient: c ≥ 0 (DeepSeekMath, section 4.2: 0.04).
    samples_per_prompt: K (TRL's GRPOConfig: 8; DeepSeekMath, section 4.2: 64).
    temperature: used for sampling and for all log-probs.
    num_epochs: passes over a batch; each is `num_minibatches` optimizer steps (DeepSeekMath,
      section 4.2: a single update).
    num_minibatches: optimizer steps per pass.
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  advantage_scale: str = 'std'
  normalisation: str = 'response'
  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_coefficient: float = 0.04
  samples_per_prompt: int = 8
  temperature: float = 1.0
  num_epochs: int = 1
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'temperature')
    checks.at_least(self, '', samples_per_prompt=1, num_epochs=1, num_minibatches=1)
    checks.at_least(self, '', num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', advantage_scale=('std', 'population_std', 'none'))
    checks.one_of(self, '', normalisation=('response', 'token', 'constant'))
    checks.fraction(self, '', 'clip_low')
    checks.interval(self, '', '[0, inf]', 'clip_high')
    checks.non_negative(self, '', 'kl_coefficient')


def make(config: Config, policy: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """GRPO as two pure functions; a train step is one iteration.

  Args:
    config: GRPO config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` that π_t sampled, with
    `reference_log_probs` under π_ref, which may be None if `kl_coefficient` is 0.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  bounds = dict(clip_low=config.clip_low, clip_high=config.clip_high)
  score = functools.partial(
      scoring.score, policy, temperature=config.temperature, chunk_size=config.head_chunk)

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch):
    mask, weight = batch.rollouts.mask, batch.weight
    log_probs, entropy = score(params['policy'], batch.rollouts)
    log_ratio = log_probs - batch.aux['old_log_probs']
    by_token = jnp.broadcast_to(batch.aux['advantages'][..., None], log_ratio.shape)
    losses = policy_losses.clipped_surrogate(log_ratio, by_token, **bounds)
    clipped = policy_losses.is_clipped(log_ratio, by_token, **bounds)

    mean = lambda x: masking.masked_mean(x, mask * weight[:, None, None])
    metrics = {
        'train/log_ratio': mean(jnp.abs(log_ratio)),
        'train/clip_fraction': mean(clipped.astype(jnp.float32)),
        'train/entropy': mean(entropy),
        'train/ties': masking.masked_mean(batch.aux['tied'], weight),
    }

    if config.kl_coefficient:
      # Values at padding are zeroed before the exponential.
      reference = jnp.where(mask > 0, batch.reference_log_probs, 0.0)
      divergence = divergences.k3(log_probs - reference)
      losses = losses + config.kl_coefficient * divergence
      metrics['train/token_kl'] = mean(divergence)

    return policy_losses.mean_over_tokens(
        losses, mask, weight, normalisation=config.normalisation), metrics

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
    batch = dataclasses.replace(batch, aux={
        'old_log_probs': old,
        'advantages': advantages.grpo(batch.rewards, scale=config.advantage_scale),
        'tied': jnp.all(batch.rewards == batch.rewards[:, :1], axis=1).astype(jnp.float32),
    })

    state, first, metrics = step_lib.take_steps(
        loss_fn, optimizer, state, batch, num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches, num_micro_batches=config.num_micro_batches,
    )

    return state, batches.iteration_metrics(first, metrics, sampler_gap=gap, dropped=dropped)

  return Algorithm(init, train_step)
