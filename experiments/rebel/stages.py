"""The stages of large-batch REBEL up to training: generate, rank, filter, score by the policy.

Each stage of a round writes a JSON-lines file in WORKDIR/round<N>/, whose first line records what
the others depend on. A killed process resumes where it stopped; a file whose first line does not
match is rejected.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.data import batching, jsonl, model_files, response_batches, tokenizers
from jaxrl_llm.rl import masking
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.runs import reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import loop, metrics, monitors, rng
from jaxrl_llm.types import Example, Params, Rollouts, SampleFn, Tokenizer

Record = dict[str, Any]


class Pairs(NamedTuple):
  """The best and the worst response of each prompt, in this order.

  Attributes:
    rollouts: K = 2, on the host.
    rewards: float32 [N, 2].
    log_probs: float32 [N, 2], nats; log-probs of whole responses under the policy at the round's
      start.
    held_out: bool [N]; pairs that are not trained on.
    counts: number of prompts kept, and left out by reason.
    tokens: tokens sampled in this round.
  """

  rollouts: Rollouts
  rewards: np.ndarray
  log_probs: np.ndarray
  held_out: np.ndarray
  counts: dict[str, int]
  tokens: int

  def select(self, rows: np.ndarray) -> 'Pairs':
    """The pairs at `rows` (int or bool)."""
    return self._replace(
        rollouts=response_batches.take(self.rollouts, rows), rewards=self.rewards[rows],
        log_probs=self.log_probs[rows], held_out=self.held_out[rows],
    )


class LargeBatchRound:
  """The stages of each round of a run; the rounds share compiled functions.

  Attributes:
    total_log_probs: (params, rollouts) -> log-probs of whole responses [P, K], nats.
  """

  def __init__(self, setup: setup_lib.Setup, reward: reward_models.RewardModel):
    self._config, algorithm = setup.config, setup.config.algorithm
    self._run, self._setup, self._reward = setup.run, setup, reward
    self._held_out = {example['id'] for example in setup.task.evaluation}
    self._encoded = setup.encode(setup.task.train + setup.task.evaluation)
    self._examples = {example['id']: example for example in self._encoded.examples}
    self._sample, self._check_rewards = generator(setup), monitors.RewardMonitor()
    score = setup.scorer(
        temperature=algorithm.temperature, chunk_size=algorithm.head_chunk)
    self.total_log_probs = lambda params, rollouts: masking.masked_sum(
        score(params, rollouts), rollouts.mask, axis=-1)

  def __call__(self, number: int, params: Params, policy: str) -> Pairs:
    """Runs the unfinished stages of a round and returns its pairs.

    Args:
      number: number of the round, from 1.
      params: parameters of the policy, in the form for frozen networks.
      policy: their fingerprint.

    Raises:
      ValueError: if the directory holds stages of another run, or no pair is left.
      SystemExit: if Ctrl-C was pressed; finished batches are kept.
    """
    folder = self._run.workdir / f'round{number}'
    folder.mkdir(exist_ok=True)
    algorithm = self._config.algorithm
    provenance = metrics.plain({
        'round': number, 'policy': policy, 'seed': self._run.seed,
        'tokenizer': tokenizers.full_fingerprint(self._setup.task.tokenizer),
        'data': model_files.fingerprint(metrics.plain(
            [[e['id'], e['prompt_ids']] for e in self._encoded.examples])),
        'responses': algorithm.samples_per_prompt, 'temperature': algorithm.temperature,
        'top_p': self._config.top_p, 'max_response_tokens': self._setup.task.max_response_tokens,
    })

    key = rng.stream_key(self._setup.key, rng.Stream.SAMPLE_TRAIN, number)
    generated = self._make(
        folder / 'generated.jsonl', provenance, self._encoded.examples, f'round {number}: generate',
        lambda rows, indices: self._generate(params, indices, key))
    ranked = self._make(
        folder / 'ranked.jsonl', {**provenance, 'reward': self._reward.fingerprint}, generated,
        f'round {number}: rank', lambda rows, indices: self._rank(rows))

    chosen, counts = best_and_worst(
        generated, ranked, self._setup.task.tokenizer,
        keep_truncated=self._config.keep_truncated)
    provenance |= {'reward': self._reward.fingerprint, **counts}
    if not chosen:
      raise ValueError(
          f'round {number} left no pair of {len(generated)} prompts: {counts} '
          '(config.keep_truncated, config.task.max_response_tokens)'
      )

    jsonl.write_jsonl(folder / 'pairs.jsonl', [provenance, *chosen])
    scored = self._make(
        folder / 'log_probs.jsonl', provenance, chosen, f'round {number}: log-probs',
        lambda rows, indices: self._log_probs(rows, params))
    return Pairs(
        self._rollouts(chosen, 'responses'),
        np.array([pair['rewards'] for pair in chosen], np.float32),
        np.array([row['log_probs'] for row in scored], np.float32),
        np.array([pair['id'] in self._held_out for pair in chosen]), counts,
        sum(len(ids) for record in generated for ids in record['responses']),
    )

  def _make(
      self, path: pathlib.Path, provenance: Record, rows: Sequence[Any], description: str,
      make: Callable[[list[Any], np.ndarray], Iterable[Record]],
  ) -> list[Record]:
    """One record for each of `rows`, read from the file or made batch by batch.

    `make` takes a batch of rows, the last one padded, and their indices.
    """
    size = self._config.generation_batch_size
    with records_lib.open_records(path, provenance, batch=size, total=len(rows)) as file:
      chunks = list(batching.sequential_chunks(len(rows), size))
      done = -(-len(file.records) // size)

      with loop.progress(len(chunks), description, done) as bar:
        for chunk in chunks[done:]:
          made = list(make([rows[i] for i in chunk.indices], chunk.indices))
          for record in made[: int(chunk.weight.sum())]:
            file.append(record)
          bar.update(1)
          self._run.save_clock()
          self._setup.stopper.check(f'stopped ({description}); all complete batches are saved')
      return file.records

  def _rollouts(self, rows: Sequence[Record], name: str) -> Rollouts:
    task = self._setup.task
    return response_batches.rollouts(
        [self._examples[row['id']]['prompt_ids'] for row in rows], [row[name] for row in rows],
        task.tokenizer, max_prompt_tokens=task.max_prompt_tokens,
        max_response_tokens=task.max_response_tokens,
    )

  def _generate(self, params: Params, indices: np.ndarray, key: jax.Array) -> Iterable[Record]:
    prompts = batching.prompt_batch(self._encoded, indices)
    rollouts = self._sample(params, *self._setup.put(tuple(prompts[:3])), key)
    tokens, lengths = np.asarray(rollouts.tokens), np.asarray(rollouts.lengths)
    for example, group, ends in zip(prompts.examples, tokens, lengths):
      yield {'id': example['id'],
             'responses': [ids[:end].tolist() for ids, end in zip(group, ends)]}

  def _rank(self, rows: list[Record]) -> Iterable[Record]:
    examples: list[Example] = [self._examples[row['id']] for row in rows]
    scored = self._reward(self._setup.put(self._rollouts(rows, 'responses')), examples)
    self._check_rewards(scored.rewards, scored.truncated)
    for row, scores, rewards in zip(rows, scored.scores, scored.rewards):
      yield {'id': row['id'], 'scores': scores, 'rewards': rewards}

  def _log_probs(self, rows: list[Record], params: Params) -> Iterable[Record]:
    totals = self.total_log_probs(params, self._setup.put(self._rollouts(rows, 'responses')))
    for row, values in zip(rows, np.asarray(totals)):
      yield {'id': row['id'], 'log_probs': values}


def generator(setup: setup_lib.Setup) -> SampleFn:
  """Jitted sampler of the responses that are ranked."""
  config, tokenizer = setup.config, setup.task.tokenizer
  return jax.jit(decode.make_sampler(
      setup.policy, num_samples=config.algorithm.samples_per_prompt,
      max_tokens=setup.task.max_response_tokens, stop_ids=tokenizer.stop_ids,
      pad_id=tokenizer.pad_id, temperature=config.algorithm.temperature, top_p=config.top_p,
  ))


def best_and_worst(
    generated: Sequence[Record], ranked: Sequence[Record], tokenizer: Tokenizer, *,
    keep_truncated: bool,
) -> tuple[list[Record], dict[str, int]]:
  """Filters each prompt's responses to those with the largest and the smallest reward.

  A prompt is left out, and counted, if a reward is not finite; if a response did not stop, unless
  `keep_truncated`; or if the two responses are the same text.

  Args:
    generated: {'id', 'responses'} of each prompt.
    ranked: {'id', 'rewards'} of the same prompts.
    tokenizer: tokenizer of the responses.
    keep_truncated: whether to keep prompts with a response that did not stop.

  Returns:
    ({'id', 'responses': [best, worst], 'rewards': [best, worst]} of each prompt that is kept,
    counts by reason).
  """
  pairs: list[Record] = []
  counts = {'failed': 0, 'truncated': 0, 'identical': 0}
  for record, rank in zip(generated, ranked, strict=True):
    rewards = np.array([float(reward) for reward in rank['rewards']], np.float32)
    stopped = [ids[-1] in tokenizer.stop_ids for ids in record['responses']]

    # Among equal rewards the first is the best and the last the worst, as in `rl.batches`.
    worst = len(rewards) - 1 - int(np.argmin(rewards[::-1]))
    two = [record['responses'][index] for index in (int(np.argmax(rewards)), worst)]

    # Each prompt is counted under the first reason that applies.
    if not np.all(np.isfinite(rewards)):
      counts['failed'] += 1
    elif not (keep_truncated or all(stopped)):
      counts['truncated'] += 1
    elif tokenizer.decode(two[0]) == tokenizer.decode(two[1]):
      counts['identical'] += 1
    else:
      pairs.append({
          'id': record['id'], 'responses': two,
          'rewards': [float(rewards.max()), float(rewards.min())],
      })
  return pairs, {**counts, 'kept': len(pairs)}
