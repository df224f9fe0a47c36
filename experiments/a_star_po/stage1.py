"""Stage 1 of A*-PO: the reference, its N rewards per prompt, and V* by example id.

Each batch of samples is appended to WORKDIR/stage1.jsonl, so a killed run resumes where it
stopped. The finished table is written to WORKDIR/v_star.json with its provenance; samples of
another reference are rejected.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.data import batching, tokenizers
from jaxrl_llm.evaluation import evaluator
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import soft_values
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.runs import references
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tables.digests import with_digest
from jaxrl_llm.training import loop, metrics, monitors, rng
from jaxrl_llm.types import Example, Params, RewardFn


class ReferenceValues(NamedTuple):
  """Results of stage 1.

  Attributes:
    ids: int64 [P], example ids.
    rewards: float32 [P, N].
    values: float32 [P], V*.
    tokens: number of sampled tokens.
  """

  ids: np.ndarray
  rewards: np.ndarray
  values: np.ndarray
  tokens: int

  def of(self, example_ids: np.ndarray) -> np.ndarray:
    """Returns V* of the given example ids; raises ValueError naming an id without one."""
    order = np.argsort(self.ids)
    rows = np.searchsorted(self.ids, example_ids, sorter=order)
    rows = order[np.minimum(rows, len(order) - 1)]
    missing = self.ids[rows] != example_ids
    if np.any(missing):
      raise ValueError(f'no V* was estimated for example {np.asarray(example_ids)[missing][0]}')
    return self.values[rows]

  def trainable(self, examples: Sequence[Example], config: a_star_po.Config) -> list[Example]:
    """Returns stage 2's examples: those of stage 1, minus all-wrong ones if so configured."""
    keep = set(self.ids.tolist())
    if config.filter_all_wrong:
      keep = set(self.ids[np.asarray(soft_values.any_success(self.rewards))].tolist())
    if not keep:
      raise ValueError(
          'filter_all_wrong left no prompt: the reference solved none of them (use a better '
          'reference or config.algorithm.filter_all_wrong=False)'
      )
    return [example for example in examples if example['id'] in keep]

  def summary(self) -> dict[str, float]:
    """Returns the headline numbers of stage 1 for results.json."""
    if not self.rewards.size:
      return {'stage1/prompts': len(self.ids)}
    return {
        'stage1/prompts': len(self.ids),
        'stage1/success_rate': float(self.rewards.mean()),
        'stage1/all_wrong_fraction': float((self.rewards.max(axis=1) <= 0).mean()),
        'stage1/all_right_fraction': float((self.rewards.min(axis=1) >= 1).mean()),
        'stage1/mean_value': float(self.values.mean()),
    }


def estimate(setup: setup_lib.Setup, reference: references.Reference) -> ReferenceValues:
  """Draws the missing samples, then estimates V* of every training prompt.

  Nothing is sampled if no sample would be used: V = 0 without filtering.

  Args:
    setup: the run's setup.
    reference: π_ref.

  Returns:
    The rewards and values.

  Raises:
    ValueError: if the workdir holds samples of something else.
    SystemExit: if Ctrl-C was pressed; the samples so far are saved.
  """
  run, config = setup.run, setup.config.algorithm
  encoded = setup.encode(setup.task.train)
  if not len(encoded):
    raise ValueError(f'{setup.task.name} has no training prompts (config.task.num_train)')
  if encoded.num_filtered:
    print(f'{encoded.num_filtered} training prompts are too long and were left out', flush=True)

  if config.value_mode == 'zero' and not config.filter_all_wrong:
    ids = encoded.ids.astype(np.int64)
    return ReferenceValues(ids, np.zeros((len(ids), 0)), np.zeros(len(ids), np.float32), 0)

  # Everything the samples depend on. beta1 and value_mode are excluded: they only change how
  # rewards are aggregated.
  provenance = metrics.plain({
      'task': setup.task.name, 'tokenizer': tokenizers.full_fingerprint(setup.task.tokenizer),
      'reference': reference.fingerprint, 'seed': run.seed, 'prompts': len(encoded),
      'data': _fingerprint(encoded.examples),
      'samples_per_prompt': config.samples_per_prompt, 'temperature': config.temperature,
      'reward': config.stage1_reward, 'batch_size': setup.config.stage1_batch_size,
      'max_response_tokens': setup.task.max_response_tokens,
  })

  records = _sample_missing(setup, reference, encoded, provenance)
  ids = np.concatenate([record['ids'] for record in records]).astype(np.int64)
  rewards = np.concatenate([np.asarray(record['rewards'], np.float32) for record in records])
  values = np.asarray(a_star_po.estimate_values(config, rewards))
  tokens = sum(record['tokens'] for record in records)

  metrics.write_json_atomic(run.workdir / 'v_star.json', with_digest({
      **provenance, 'commit': run.commit, 'beta1': config.beta1,
      'value_mode': config.value_mode, 'sampled_tokens': tokens,
      'values': {str(i): float(value) for i, value in zip(ids, values)},
  }))
  return ReferenceValues(ids, rewards, values, tokens)


def _sample_missing(
    setup: setup_lib.Setup, reference: references.Reference, encoded: batching.EncodedExamples,
    provenance: dict[str, Any],
) -> list[dict[str, Any]]:
  """Returns one record {'ids', 'rewards', 'tokens'} per batch, read from the file or sampled."""
  config, task = setup.config.algorithm, setup.task
  batches = setup.prompt_batches(encoded, setup.config.stage1_batch_size)
  path = setup.run.workdir / 'stage1.jsonl'
  with records_lib.open_records(path, provenance, batch=1, total=len(batches)) as file:
    reward_fn = _stage1_reward(setup)
    sample = setup.sampler(num_samples=config.samples_per_prompt, temperature=config.temperature)
    key = rng.stream_key(setup.key, rng.Stream.SAMPLE_STAGE1)

    done = len(file.records)
    check_rewards = monitors.RewardMonitor(min(3, max(len(batches) - done, 1)))
    with loop.progress(len(batches), 'stage 1: V*', done) as bar:
      for prompts in batches[done:]:
        rollouts = sample(reference.params, *prompts[:3], key)
        scored = rollout_rewards.score_rollouts(
            evaluator.real_rows(rollouts, prompts), prompts.examples,
            tokenizer=task.tokenizer, reward_fn=reward_fn,
        )

        check_rewards(scored.rewards, scored.truncated)
        file.append({
            'ids': [example['id'] for example in prompts.examples],
            'rewards': scored.rewards.tolist(), 'tokens': int(scored.lengths.sum()),
        })  # A killed process resumes after this batch.
        bar.update(1, success=float(scored.rewards.mean()))
        setup.stopper.check('stopped in stage 1; all complete batches are saved')
    return file.records


def _fingerprint(examples: Sequence[Example]) -> str:
  """Hashes the problems: `data_dir` may change between starts of a run, its contents may not."""
  text = json.dumps(metrics.plain(examples), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stage1_reward(setup: setup_lib.Setup) -> RewardFn:
  lenient = setup.config.algorithm.stage1_reward == 'lenient'
  return setup.task.lenient_reward_fn if lenient else setup.task.reward_fn


def measure_success(
    setup: setup_lib.Setup, base: Params, stage1: ReferenceValues
) -> tuple[np.ndarray, np.ndarray] | None:
  """Measures the reference's success rates on fresh samples, to compare with stage 1's V*.

  Args:
    setup: the run's setup; `evaluation.diagnosed_prompts` and `diagnosed_samples` of its config
      are the numbers of prompts and of samples for each.
    base: parameters of π_ref.
    stage1: its V*.

  Returns:
    (success rates [M], V* [M]) of the first M training prompts, or None for M = 0.
  """
  config = setup.config
  if not config.evaluation.diagnosed_prompts:
    return None
  known = set(stage1.ids.tolist())  # Prompts that were too long have no V*.
  examples = [example for example in setup.task.train if example['id'] in known]

  encoded = setup.encode(examples[: config.evaluation.diagnosed_prompts])
  sample = setup.sampler(
      num_samples=config.evaluation.diagnosed_samples, temperature=config.algorithm.temperature
  )
  key = rng.stream_key(setup.key, rng.Stream.SAMPLE_DIAGNOSTIC)
  reward_fn = _stage1_reward(setup)

  rates, ids = [], []
  for prompts in setup.prompt_batches(encoded, config.stage1_batch_size):
    rollouts = sample(base, *prompts[:3], key)
    scored = rollout_rewards.score_rollouts(
        evaluator.real_rows(rollouts, prompts), prompts.examples,
        tokenizer=setup.task.tokenizer, reward_fn=reward_fn,
    )
    rates.append(scored.rewards.mean(axis=1))
    ids += [example['id'] for example in prompts.examples]
  return np.concatenate(rates), stage1.of(np.asarray(ids))
