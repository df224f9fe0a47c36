"""A*-PO: policy optimisation by regression on an offline estimate of the optimal advantage.

Brantley, Chen, Gao, Lee, Sun, Zhan and Zhang, 2025, "Accelerating RL for LLM reasoning
with optimal advantage regression", arXiv 2505.20686; code: ZhaolinGao/A-PO.

The objective is max_π E[r(x, y)] − β KL(π ‖ π_ref) with a verifiable reward in {0, 1}.
Its solution satisfies β log π*(y|x) / π_ref(y|x) = r(x, y) − V*(x) for every y, with
V*(x) = β log E_{y∼π_ref} exp(r(x, y) / β). A*-PO fits this equation by regression:

  stage 1, offline, once: N samples per prompt from π_ref,
    V̂*(x) = β₁ log (1/N) Σ_i exp(r(x, y_i) / β₁);                            (`estimate_values`)
  stage 2, online: one sample y ∼ π_θ(·|x) per prompt,
    L(θ) = mean (β₂ log π_θ(y|x) / π_ref(y|x) − (r(x, y) − V̂*(x)))²,         (`make`)
    where log π is the sum over the tokens of the response, stop token included.

There is no critic, no group, no ratio to an old policy and no clipping. The gradient is
not taken through the sampling. Since β₁ ≠ β₂ as published (0.5 and 1e-3), the loss does
not fall to zero at the optimum: its floor is the mean of (V_β₁ − V_β₂)².

Departures from the released code, and why:
- There, β₁ = 0 means the mean of the rewards and β₁ < 0 means V = 0, although the limit
  β₁ → 0 is their maximum. Here `value_mode` selects the estimator explicitly.
- There, both scripts use an entropy bonus of 1e-3, which is not part of the objective.
  It is off here; `entropy_coefficient=1e-3` restores it.
- There, stage 1 is scored with a more lenient reward than stage 2. Here both are the
  same; `stage1_reward='lenient'` restores the released one.
- There, each batch of rollouts gets two optimizer steps, the second slightly off-policy:
  `num_minibatches` (1 here, 2 there).

Tables: experiments/configs/a_star_po_{arithmetic,ablation,countdown,gsm8k}.py.
"""

import dataclasses

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, masking, regression_losses, scoring, soft_values
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, TrainState, WeightedMean


@dataclasses.dataclass
class Config:
  """A*-PO config; the defaults are those of the released scripts where they agree with
  the paper (addresses in experiments/configs/a_star_po_gsm8k.py).

  Attributes:
    beta1: β₁ > 0 of stage 1; interpolates between the maximum (→ 0) and the mean (→ ∞) of
      the rewards.
    beta2: β₂ > 0 of stage 2, the weight of the KL divergence.
    samples_per_prompt: N ≥ 1 samples of stage 1.
    value_mode: 'softmax' (the paper's estimator), its limits 'max' and 'mean', or 'zero'.
    filter_all_wrong: exclude from stage 2 the prompts whose N samples all failed.
    stage1_reward: 'identical' (to stage 2's) or 'lenient' (the task's lenient reward).
    entropy_coefficient: weight of a bonus on the mean entropy of a token, nats.
    temperature: used for sampling and for all log-probs.
    num_minibatches: optimizer steps per batch of rollouts; all but the first are
      slightly off-policy.
    num_micro_batches: micro-batches per minibatch.
    head_chunk: positions per chunk of the head; 0 takes all at once.
  """

  beta1: float = 0.5
  beta2: float = 1e-3
  samples_per_prompt: int = 8
  value_mode: str = 'softmax'
  filter_all_wrong: bool = False
  stage1_reward: str = 'identical'
  entropy_coefficient: float = 0.0
  temperature: float = 1.0
  num_minibatches: int = 1
  num_micro_batches: int = 1
  head_chunk: int = 128

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, '', 'beta1', 'beta2', 'temperature')
    checks.at_least(self, '', samples_per_prompt=1, num_minibatches=1)
    checks.at_least(self, '', num_micro_batches=1, head_chunk=0)
    checks.one_of(self, '', value_mode=('softmax', 'mean', 'max', 'zero'))
    checks.one_of(self, '', stage1_reward=('identical', 'lenient'))
    checks.non_negative(self, '', 'entropy_coefficient')


def estimate_values(config: Config, rewards: Array) -> Array:
  """Stage 1: V̂*(x) of each prompt from the rewards of its reference samples.

  Args:
    config: `value_mode` and `beta1` are used.
    rewards: float32 [P, N].

  Returns:
    float32 [P].
  """
  return soft_values.v_star(rewards, beta=config.beta1, mode=config.value_mode)


def make(
    config: Config, policy: ModelFns, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Stage 2 as two pure functions.

  Args:
    config: A*-PO config.
    policy: the network of params['policy'].
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` of one sample per
    prompt, with `reference_log_probs` under the frozen π_ref and aux['values'] = V̂* [P].

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Batch):
    mask = batch.rollouts.mask
    log_probs, entropy = scoring.score(
        policy, params['policy'], batch.rollouts,
        temperature=config.temperature, chunk_size=config.head_chunk,
    )
    log_ratio = masking.masked_sum(log_probs - batch.reference_log_probs, mask, axis=-1)[:, 0]
    losses = regression_losses.a_star_po_loss(
        log_ratio, batch.rewards[:, 0], batch.aux['values'], beta=config.beta2
    )

    sequence_entropy = masking.masked_sum(entropy, mask, axis=-1)[:, 0]
    # The bonus is a mean over tokens, the loss a mean over prompts: the factor
    # prompts / tokens of the whole batch gives both the same denominator.
    bonus = config.entropy_coefficient * batch.aux['prompts_per_token'] * sequence_entropy
    prompts, tokens = jnp.sum(batch.weight), jnp.sum(mask * batch.weight[:, None, None])
    weighted = lambda x: jnp.sum(batch.weight * x)

    # As in `batches.sampler_gap`, tokens with an unknown log-prob under the sampler are excluded.
    known = jnp.where(jnp.isfinite(batch.rollouts.log_probs), mask, 0.0)
    gap = jnp.abs(log_probs - jnp.where(known > 0, batch.rollouts.log_probs, 0.0))
    gap = masking.masked_sum(gap, known, axis=-1)[:, 0]

    metrics = {
        'train/squared_error': WeightedMean(weighted(losses), prompts),
        'train/log_ratio': WeightedMean(weighted(log_ratio), prompts),
        'train/entropy': WeightedMean(weighted(sequence_entropy), tokens),
        'train/sampler_gap': WeightedMean(
            weighted(gap), jnp.sum(known * batch.weight[:, None, None])),
    }
    return WeightedMean(weighted(losses - bonus), prompts), metrics

  def train_step(state, batch: Batch):
    chex.assert_shape(batch.rewards, (None, 1))
    # A prompt with a failed reward in stage 1 has no value, and so no regression target.
    valued = jnp.isfinite(batch.aux['values'])[:, None]
    batch, dropped = batches.drop_invalid(
        dataclasses.replace(batch, rewards=jnp.where(valued, batch.rewards, jnp.nan)))

    tokens = jnp.sum(batch.rollouts.mask * batch.weight[:, None, None])
    per_token = jnp.sum(batch.weight) / jnp.maximum(tokens, 1.0)
    aux = {**batch.aux, 'prompts_per_token': jnp.full(batch.weight.shape, per_token)}

    state, metrics = step_lib.take_step(
        loss_fn, optimizer, state, dataclasses.replace(batch, aux=aux),
        num_micro_batches=config.num_micro_batches,
    )
    return state, {**metrics, 'train/dropped': dropped}

  return Algorithm(init, train_step)
