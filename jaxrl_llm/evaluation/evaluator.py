"""Evaluation of a policy on held-out problems: pass@k, greedy accuracy, KL to a reference."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from jaxrl_llm.evaluation import pass_at_k, statistics
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import divergences, masking
from jaxrl_llm.types import Array, Example, ModelFns, Params, Rollouts, SampleFn, Task


class Prompts(Protocol):
  """A batch of prompts: arrays [P, L], [P], [P] and at most P examples.

  A batch that is padded to a fixed size lists only its real examples.
  """

  prompts: np.ndarray
  prompt_lengths: np.ndarray
  example_ids: np.ndarray
  examples: Sequence[Example]


class Evaluation(NamedTuple):
  """Result of `Evaluator`.

  Attributes:
    numbers: metrics by name: pass@1 and pass@K with standard errors over problems,
      greedy_accuracy, length (tokens), truncated (fraction), kl_to_reference (nats per
      response) with its standard error.
    sampled: the samples at temperature 1 and their rewards.
    greedy: the greedy responses and their rewards.
  """

  numbers: dict[str, float]
  sampled: rollout_rewards.Scored
  greedy: rollout_rewards.Scored


def real_rows(rollouts: Rollouts, batch: Prompts) -> Rollouts:
  """Fetches the rollouts of a batch's real examples to the host, without padding."""
  count = len(batch.examples)
  return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(rollouts))


def sample_and_score(
    sample: SampleFn,
    params: Params,
    batches: Iterable[Prompts],
    key: Array,
    score: Callable[[Rollouts, Sequence[Example]], rollout_rewards.Scored],
    measure: Callable[[Rollouts], Array] | None = None,
) -> tuple[rollout_rewards.Scored, np.ndarray | None]:
  """Samples responses to every prompt and scores them.

  Args:
    sample: a jitted sampler.
    params: parameters of the policy.
    batches: batches of one fixed size; the last can have fewer examples.
    key: PRNG key for the noise, together with the example ids.
    score: (rollouts, examples) -> Scored.
    measure: optional metric per response, rollouts -> [P, K].

  Returns:
    (Scored of N prompts, measures [N, K] or None).
  """
  parts, measures = [], []
  for batch in batches:
    rollouts = sample(params, batch.prompts, batch.prompt_lengths, batch.example_ids, key)
    if measure is not None:
      measures.append(np.asarray(measure(rollouts))[: len(batch.examples)])
    parts.append(score(real_rows(rollouts, batch), batch.examples))
  return rollout_rewards.join(parts), np.concatenate(measures) if measures else None


def response_kl(
    policy: ModelFns,
    params: Params,
    reference_params: Params,
    rollouts: Rollouts,
    *,
    temperature: float = 1.0,
    chunk_size: int = 0,
) -> Array:
  """KL(π ‖ π_ref) of each sampled response, exact at every token.

    Σ_t Σ_v π(v | x, y_<t) log (π(v | x, y_<t) / π_ref(v | x, y_<t)),  y ∼ π

  Its mean over samples is an unbiased estimate of the divergence of the response
  distributions, with less variance than the log-ratio of the sampled tokens.

  Args:
    policy: the network of both policies.
    params: parameters of the policy.
    reference_params: parameters of the reference.
    rollouts: samples of the policy.
    temperature: temperature of both distributions.
    chunk_size: positions per chunk of the head; 0 takes all at once.

  Returns:
    float32 [P, K], nats.
  """
  sequences = masking.concatenate_prompt_response(rollouts)
  ours, theirs = (
      policy.apply(p, sequences.tokens, positions=sequences.positions, valid=sequences.valid)
      for p in (params, reference_params))

  start = rollouts.prompts.shape[1] - 1

  def window(hidden: Array) -> Array:
    return hidden[:, start : start + rollouts.tokens.shape[-1]]

  token_kl = divergences.token_kl(
      window(ours.hidden), ours.head, window(theirs.hidden), theirs.head,
      temperature=temperature, chunk_size=chunk_size,
  )
  return masking.masked_sum(token_kl.reshape(rollouts.mask.shape), rollouts.mask, axis=-1)


class Evaluator:
  """Evaluates parameters on fixed held-out problems with fixed noise.

  Attributes:
    examples: the problems, in the order of every result.
  """

  def __init__(
      self,
      policy: ModelFns,
      task: Task,
      batches: Iterable[Prompts],
      key: Array,
      *,
      sample: SampleFn,
      greedy: SampleFn,
      chunk_size: int = 0,
  ):
    """Compiles nothing yet: the samplers are already jitted, and compile at the first call.

    Args:
      policy: the network.
      task: provides the tokenizer and the reward.
      batches: the held-out prompts; iterated over several times.
      key: PRNG key for the noise of the evaluation.
      sample: a jitted sampler at temperature 1 with K samples per prompt.
      greedy: a jitted sampler at temperature 0 with one sample per prompt.
      chunk_size: positions per chunk of the head in the divergence.
    """
    self._batches, self._key = batches, key
    self.examples = [example for batch in batches for example in batch.examples]
    self._sample, self._greedy = sample, greedy
    self._score = lambda rollouts, examples: rollout_rewards.score_rollouts(
        rollouts, examples, tokenizer=task.tokenizer, reward_fn=task.reward_fn
    )

    @jax.jit
    def divergence(params, reference, rollouts):
      return response_kl(policy, params, reference, rollouts, chunk_size=chunk_size)

    self._kl = divergence

  def __call__(self, params: Params, reference_params: Params) -> Evaluation:
    """Evaluates `params`; the divergence is to `reference_params`, 0 if that is the same object."""

    def measure(rollouts: Rollouts) -> Array:
      if params is reference_params:  # Two forward passes for a known result.
        return np.zeros(rollouts.lengths.shape, np.float32)
      return self._kl(params, reference_params, rollouts)

    sampled, kl = sample_and_score(
        self._sample, params, self._batches, self._key, self._score, measure
    )
    greedy, _ = sample_and_score(self._greedy, params, self._batches, self._key, self._score)

    numbers = _summary(sampled)
    numbers['greedy_accuracy'] = float((greedy.rewards > 0).mean())
    numbers['kl_to_reference'], numbers['kl_to_reference_se'] = statistics.mean_and_standard_error(
        kl.mean(axis=1)
    )
    return Evaluation(numbers, sampled, greedy)

  def sampled_only(self, params: Params, sample: SampleFn) -> dict[str, float]:
    """Returns pass@k, length and truncation under another sampler (a temperature control)."""
    sampled, _ = sample_and_score(sample, params, self._batches, self._key, self._score)
    return _summary(sampled)


def _summary(sampled: rollout_rewards.Scored) -> dict[str, float]:
  num_samples = sampled.rewards.shape[1]
  correct = (sampled.rewards > 0).sum(axis=1)

  numbers = {}
  for k in sorted({1, num_samples}):
    values = pass_at_k.pass_at_k(num_samples, correct, k=k)
    numbers[f'pass@{k}'], numbers[f'pass@{k}_se'] = statistics.mean_and_standard_error(values)

  numbers['length'] = float(sampled.lengths.mean())
  numbers['truncated'] = float(sampled.truncated.mean())
  return numbers
