"""Batches of REBEL: prompts, samples, the data's responses, rewards, π_ref's log-probs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rebel import config as rebel_config
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.data import batching, response_batches
from jaxrl_llm.rewards import model_reward
from jaxrl_llm.runs import policy_evaluation, reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import rng
from jaxrl_llm.types import Batch, Example, Params, Rollouts


class Prompts:
  """The training prompts, with the data's responses if these are mixed in."""

  def __init__(self, setup: setup_lib.Setup):
    """Encodes the prompts.

    If the algorithm's `offline_fraction` is positive, prompts whose chosen response is missing or
    too long are left out.

    Args:
      setup: the run's setup.

    Raises:
      ValueError: if no prompt is left.
    """
    task, self._responses = setup.task, None
    examples, mixes = task.train, setup.config.algorithm.offline_fraction > 0
    if mixes:
      examples = [
          example for example in task.train
          if 0 < len(example.get('chosen_ids', ())) <= task.max_response_tokens]
      if not examples:
        raise ValueError(
            f'none of {len(task.train)} training prompts has a response of at most '
            f'{task.max_response_tokens} tokens to mix in (config.algorithm.offline_fraction)'
        )

    self._encoded = setup.encode(examples)
    if mixes:
      self._responses = response_batches.rollouts(
          [example['prompt_ids'] for example in self._encoded.examples],
          [[example['chosen_ids']] for example in self._encoded.examples], task.tokenizer,
          max_prompt_tokens=task.max_prompt_tokens, max_response_tokens=task.max_response_tokens,
      )

  def __len__(self) -> int:
    return len(self._encoded)

  def batch(
      self, size: int, *, seed: int, step: int
  ) -> tuple[batching.PromptBatch, Rollouts | None]:
    """Prompts of a step, and the data's responses to them (K = 1) if some are mixed in."""
    indices = batching.batch_indices(len(self), size, seed=seed, step=step)
    responses = self._responses
    if responses is not None:
      responses = response_batches.take(responses, indices)
    return batching.prompt_batch(self._encoded, indices), responses


class BatchBuilder:
  """Builds batches of the online pipeline.

  Attributes:
    sample: jitted sampler of the group, followed by the comparators.
  """

  def __init__(self, setup: setup_lib.Setup, reward: reward_models.RewardModel):
    config: rebel_config.Online = setup.config
    algorithm = config.algorithm
    self._config, self._setup, self._reward = config, setup, reward
    self._group = algorithm.samples_per_prompt

    self.sample = setup.sampler(
        num_samples=self._group + config.num_comparators, temperature=algorithm.temperature)
    self._log_probs = setup.scorer(
        temperature=algorithm.temperature, chunk_size=algorithm.head_chunk,
        num_micro_batches=config.num_parts)
    self._mix = jax.jit(lambda rollouts, offline, key: rebel.mix_offline(
        algorithm, rollouts, offline, key))

  def mix_offline(self, rollouts: Rollouts, responses: Rollouts | None, step: int) -> Rollouts:
    """Replaces the second sample of some prompts by the data's response."""
    if responses is None:
      return rollouts
    key = rng.stream_key(self._setup.key, rng.Stream.DATA, step)
    pair = self._mix(rollouts.samples(slice(0, 2)), self._setup.put(responses), key)
    if not self._config.num_comparators:
      return pair
    comparators = rollouts.samples(slice(2, None))
    return pair.map_samples(lambda *leaves: jnp.concatenate(leaves, axis=1), comparators)

  def score(
      self, rollouts: Rollouts, examples: Sequence[Example]
  ) -> reward_models.Scored:
    """Scores all samples with the reward model."""
    return self._reward(rollouts, examples, num_micro_batches=self._config.num_parts)

  def build(
      self, rollouts: Rollouts, scored: reward_models.Scored, reference: Params
  ) -> Batch:
    """Builds the batch on the devices.

    Args:
      rollouts: the group and the comparators.
      scored: their rewards.
      reference: parameters of π_ref.
    """
    group = rollouts
    if self._config.num_comparators:
      group = rollouts.samples(slice(0, self._group))
    log_probs = None
    if self._config.algorithm.kl_coefficient:
      log_probs = self._log_probs(reference, group)
    weight = np.ones(len(scored.rewards), np.float32)
    return self._setup.put(Batch(group, self._signal(scored), log_probs, {}, weight))

  def _signal(self, scored: reward_models.Scored) -> np.ndarray:
    """Rewards [P, K], or preferences [P, 2, M] over the comparators."""
    rewards = scored.rewards
    if not self._config.num_comparators:
      return rewards
    return model_reward.preferences(rewards[:, : self._group], rewards[:, self._group :])

  def summary(self, scored: reward_models.Scored) -> dict[str, float]:
    """Metrics of a batch; non-finite scores are excluded."""
    return policy_evaluation.summarize(scored, self._signal(scored), self._config.algorithm.eta)
