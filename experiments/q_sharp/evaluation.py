"""Evaluation of guided policies on held-out problems: accuracy, majority vote, KL."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrl_llm.evaluation import evaluator, pass_at_k, statistics, voting
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import return_heads
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.runs import value_models, voting_rules
from jaxrl_llm.sampling import decode, guided
from jaxrl_llm.training import loop, rng
from jaxrl_llm.types import Params


class Evaluation:
  """Evaluates policies on the same problems with the same noise; compiles each rule once."""

  def __init__(
      self, setup: setup_lib.Setup, model: value_models.ValueModel,
      head: return_heads.ReturnHead,
  ):
    """Compiles nothing yet."""
    config = setup.config
    self._setup, self._model, self._head = setup, model, head
    self._rule = voting_rules.of_task(config.task)
    encoded = setup.encode(setup.task.evaluation)
    self._batches = setup.prompt_batches(encoded, config.evaluation.batch_size)
    self._samplers: dict[str, Any] = {}

  def guided(
      self, rule: str, params: Mapping[str, Params], inv_eta: float, *, title: str
  ) -> dict[str, float]:
    """Evaluates a guided policy.

    Args:
      rule: one of `guided.RULES`.
      params: {'policy': π_ref, role of the value model: its parameters}.
      inv_eta: 1/η; 0 is the reference.
      title: title of the progress bar.

    Returns:
      `_summary`, and 'kl' and 'kl_of_paper' (nats per response) with standard errors.
    """
    if rule not in self._samplers:
      self._samplers[rule] = jax.jit(make_sampler(
          self._setup, self._model, self._head, rule,
          num_samples=self._setup.config.evaluation.num_samples))
    key = rng.stream_key(self._setup.key, rng.Stream.SAMPLE_EVAL)

    parts, divergences = [], []
    for prompts in loop.Tracked(self._batches, title):
      out = self._samplers[rule](params, *prompts[:3], key, np.float32(inv_eta))
      count = len(prompts.examples)
      divergences.append(np.stack([out.kl, out.kl_of_paper])[:, :count])
      parts.append(self._score(out.rollouts, prompts))

    numbers = self._summary(rollout_rewards.join(parts))
    for name, values in zip(('kl', 'kl_of_paper'), np.concatenate(divergences, axis=1)):
      numbers[name], numbers[f'{name}_se'] = statistics.mean_and_standard_error(
          values.mean(axis=1))
    return numbers

  def sampled(self, sample, params: Params, *, title: str) -> dict[str, float]:
    """Evaluates a policy by itself, with any sampler of `decode.make_sampler`."""
    key = rng.stream_key(self._setup.key, rng.Stream.SAMPLE_EVAL)
    return self._summary(rollout_rewards.join([
        self._score(sample(params, *prompts[:3], key), prompts)
        for prompts in loop.Tracked(self._batches, title)]))

  def _score(self, rollouts, prompts) -> rollout_rewards.Scored:
    return rollout_rewards.score_rollouts(
        evaluator.real_rows(rollouts, prompts), prompts.examples,
        tokenizer=self._setup.task.tokenizer, reward_fn=self._setup.task.reward_fn)

  def _summary(self, scored: rollout_rewards.Scored) -> dict[str, float]:
    """Returns accuracy (of a sample), pass@K and maj@K with standard errors over problems."""
    right = scored.rewards > 0
    count = right.shape[1]
    values = {'accuracy': right.mean(axis=1)}
    if count > 1:
      values[f'pass@{count}'] = pass_at_k.pass_at_k(count, right.sum(axis=1), k=count)
      values[f'maj@{count}'] = voting.weighted_vote(
          self._rule.groups(scored), right, empty='excluded')

    numbers = {'length': float(scored.lengths.mean()), 'truncated': float(scored.truncated.mean())}
    for name, of_problem in values.items():
      numbers[name], numbers[f'{name}_se'] = statistics.mean_and_standard_error(of_problem)
    return numbers


def reference_sampler(setup: setup_lib.Setup):
  """Makes a jitted sampler of a policy as the reference is sampled: temperature, nucleus, tail."""
  config, task = setup.config, setup.task
  guidance = config.guidance
  return jax.jit(decode.make_sampler(
      setup.policy, num_samples=config.evaluation.num_samples,
      max_tokens=task.max_response_tokens, stop_ids=task.tokenizer.stop_ids,
      pad_id=task.tokenizer.pad_id, temperature=guidance.temperature, top_p=guidance.top_p,
      top_k=guidance.num_candidates if guidance.tail == 'truncate' else 0))


def make_sampler(
    setup: setup_lib.Setup, model: value_models.ValueModel, head: return_heads.ReturnHead,
    rule: str, *, num_samples: int,
):
  """Makes a guided sampler of the config's guidance; not yet compiled."""
  guidance, task = setup.config.guidance, setup.task
  guide = guided.Guide(model.network, head, function=model.role, rule=rule)
  return guided.make_sampler(
      setup.policy, guide, num_samples=num_samples, max_tokens=task.max_response_tokens,
      num_candidates=guidance.num_candidates, stop_ids=task.tokenizer.stop_ids,
      pad_id=task.tokenizer.pad_id, temperature=guidance.temperature, top_p=guidance.top_p,
      tail=guidance.tail, order=guidance.order)
