"""Responses of the reference that begin with tokens of another policy, for training value models.

A roll-in policy samples a whole response; the reference continues a beginning of it. Every batch of
prompts is a line of a JSONL file, so that a killed process resumes after its last batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import evaluator
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import return_heads
from jaxrl_llm.runs import artefacts, references
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import loop
from jaxrl_llm.types import Array, Batch, Params, Rollouts

# Roll-ins of a batch of prompts: (prompts, key) -> rollouts [P, K].
RollIn = Callable[[batching.PromptBatch, Array], Rollouts]


class Cuts(NamedTuple):
  """Where responses are cut; both int [P, K].

  Attributes:
    given: number of tokens of the roll-in that the reference continues. A whole response is not
      continued.
    first: index of the first token in the loss.
  """

  given: np.ndarray
  first: np.ndarray


def cut_at_random(
    lengths: np.ndarray, random: np.random.Generator, *, power: float = 0.0
) -> np.ndarray:
  """Draws the index c in {0, ..., L − 1} of a token of each response, P(c) ∝ (c + 1)^power.

  Args:
    lengths: int [...]; L.
    random: source of random numbers.
    power: 0 for the uniform distribution.

  Returns:
    int [...].
  """
  weights = np.arange(1, lengths.max(initial=1) + 1, dtype=np.float64) ** power
  totals = np.cumsum(weights)
  # The first c whose cumulative weight exceeds u times that of the whole response.
  return np.searchsorted(totals, random.random(lengths.shape) * totals[lengths - 1], side='right')


_BY_RESPONSE = ('rows', 'tokens', 'lengths', 'first', 'truncated', 'targets')


@dataclasses.dataclass(frozen=True)
class ValueData:
  """N responses with what is to be predicted after their tokens.

  Attributes:
    prompts: the prompts.
    rows: int [N]; index of each response's prompt.
    tokens: int32 [N, T]; padded.
    lengths: int32 [N].
    first: int32 [N]; index of the first token in the loss.
    truncated: bool [N]; whether a response reached the limit.
    targets: float32 [N]; rewards, or classes of `return_heads.Outcome`.
    sampled_tokens: tokens sampled for them, those of the roll-ins included.
  """

  prompts: batching.EncodedExamples
  rows: np.ndarray
  tokens: np.ndarray
  lengths: np.ndarray
  first: np.ndarray
  truncated: np.ndarray
  targets: np.ndarray
  sampled_tokens: int

  def __len__(self) -> int:
    return len(self.rows)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Fingerprint of all arrays."""
    arrays = {name: getattr(self, name) for name in _BY_RESPONSE}
    return artefacts.digest({**arrays, 'prompts': self.prompts.prompts})[:16]

  def check(self, other: str) -> None:
    """Raises ValueError unless the fingerprint in a checkpoint is that of these responses."""
    _check_same(other, self.fingerprint)

  def select(self, index: np.ndarray) -> 'ValueData':
    """Selects responses, by index or mask."""
    return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in _BY_RESPONSE})

  def classes(self) -> 'ValueData':
    """Replaces rewards by classes: above 0 is correct; truncated is unfinished in any case."""
    classes = np.where(self.targets > 0, return_heads.CORRECT, return_heads.WRONG)
    classes = np.where(self.truncated, return_heads.UNFINISHED, classes)
    return dataclasses.replace(self, targets=classes.astype(np.float32))

  def split(self, fraction: float) -> tuple['ValueData', 'ValueData']:
    """Separates the responses of the last prompts, as large a fraction of all prompts as given."""
    held_out = self.rows >= len(self.prompts) - round(fraction * len(self.prompts))
    return self.select(~held_out), self.select(held_out)

  def without_constant_prompts(self) -> 'ValueData':
    """Drops the responses of the prompts whose targets are all equal."""
    shape = len(self.prompts)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    np.minimum.at(low, self.rows, self.targets)
    np.maximum.at(high, self.rows, self.targets)
    return self.select((low < high)[self.rows])

  def of_solved_prompts(self) -> 'ValueData':
    """Drops the responses of the prompts without a reward above 0."""
    highest = np.zeros(len(self.prompts))
    np.maximum.at(highest, self.rows, self.targets)
    return self.select((highest > 0)[self.rows])

  def batch(self, index: np.ndarray) -> Batch:
    """Returns responses as a batch with one response per prompt; its mask is that of the loss."""
    part = self.select(index)
    prompts = batching.prompt_batch(self.prompts, part.rows)
    shape = part.tokens[:, None].shape
    steps = np.arange(shape[-1])
    mask = (steps >= part.first[:, None]) & (steps < part.lengths[:, None])
    rollouts = Rollouts(
        prompts.prompts, prompts.prompt_lengths, part.tokens[:, None], part.lengths[:, None],
        mask[:, None].astype(np.float32), np.zeros(shape, np.float32),
        np.zeros(shape[:2], np.int8))
    return Batch(
        rollouts, part.targets[:, None], None, {}, np.ones(len(part), np.float32))


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of a right and a wrong response to the same problem; used like `ValueData`.

  Attributes:
    data: the responses, with rewards as targets.
    right: int [M]; indices into them.
    wrong: int [M].
  """

  data: ValueData
  right: np.ndarray
  wrong: np.ndarray

  def __len__(self) -> int:
    return len(self.right)

  @property
  def fingerprint(self) -> str:
    """Fingerprint of the responses and of the pairing."""
    return self.data.fingerprint + artefacts.digest({'right': self.right, 'wrong': self.wrong})[:8]

  def check(self, other: str) -> None:
    """See `ValueData.check`."""
    _check_same(other, self.fingerprint)

  def split(self, fraction: float) -> tuple['Pairs', 'Pairs']:
    """See `ValueData.split`."""
    rows, count = self.data.rows[self.right], len(self.data.prompts)
    held_out = rows >= count - round(fraction * count)
    return tuple(
        Pairs(self.data, self.right[part], self.wrong[part]) for part in (~held_out, held_out))

  def batch(self, index: np.ndarray) -> Batch:
    """Returns pairs as a batch with two responses per prompt, of rewards 1 and 0."""
    right, wrong = (self.data.batch(each[index]) for each in (self.right, self.wrong))
    both = right.rollouts.map_samples(
        lambda *each: np.concatenate(each, axis=1), wrong.rollouts)
    rewards = np.concatenate([right.rewards, wrong.rewards], axis=1)
    return dataclasses.replace(right, rollouts=both, rewards=rewards)


def pair(data: ValueData, *, seed: int) -> Pairs:
  """Pairs the right responses to each problem with wrong ones at random, each used once."""
  random = np.random.default_rng(seed)
  right, wrong = [], []
  for row in np.unique(data.rows):
    mine = np.flatnonzero(data.rows == row)
    good, bad = (random.permutation(mine[(data.targets[mine] > 0) == x]) for x in (True, False))
    count = min(len(good), len(bad))
    right.append(good[:count])
    wrong.append(bad[:count])
  return Pairs(data, np.concatenate(right), np.concatenate(wrong))


def join(parts: Sequence[ValueData]) -> ValueData:
  """Concatenates responses to the same prompts."""
  total = sum(part.sampled_tokens for part in parts)
  return dataclasses.replace(parts[0], sampled_tokens=total, **{
      name: np.concatenate([getattr(part, name) for part in parts]) for name in _BY_RESPONSE})


def _check_same(other: str, fingerprint: str) -> None:
  if other != fingerprint:
    raise ValueError(
        f'the checkpoint was trained on the responses {other}, this run has {fingerprint}; give '
        'another --workdir')


class Collector:
  """Samples roll-ins and roll-outs; its functions are compiled once for all rounds."""

  def __init__(
      self, setup: setup_lib.Setup, reference: references.Reference, *, num_samples: int,
      batch_size: int, temperature: float, top_p: float, num_cuts: int = 1,
  ):
    """Compiles nothing yet.

    Args:
      setup: the run's setup; its training problems are used.
      reference: continues the roll-ins.
      num_samples: K, roll-ins per prompt.
      batch_size: prompts per batch.
      temperature: that of the reference.
      top_p: its nucleus; 1 keeps all.
      num_cuts: cuts of each roll-in; there is a roll-out from each.

    Raises:
      ValueError: the task has no training problems.
    """
    self._setup, self._reference, self._batch_size = setup, reference, batch_size
    self._num_cuts = num_cuts
    self.prompts = setup.encode(setup.task.train).trimmed()
    if not len(self.prompts):
      raise ValueError(f'{setup.task.name} has no training problems (config.task)')
    self._options = {
        'num_samples': num_samples, 'max_tokens': setup.task.max_response_tokens,
        'stop_ids': setup.task.tokenizer.stop_ids, 'pad_id': setup.task.tokenizer.pad_id}
    self._reference_options = {'temperature': temperature, 'top_p': top_p}
    self._continue = jax.jit(decode.make_sampler(setup.policy, **{
        **self._options, **self._reference_options, 'num_samples': num_samples * num_cuts}))

  def roll_in_by(self, params: Params, **options: float) -> RollIn:
    """Returns the roll-in of a policy of the reference's shape; by default sampled as that is."""
    sample = jax.jit(decode.make_sampler(
        self._setup.policy, **self._options, **{**self._reference_options, **options}))
    return lambda prompts, key: sample(params, *prompts[:3], key)

  def __call__(
      self, name: str, roll_in: RollIn, cut: Callable[[np.ndarray, np.random.Generator], Cuts],
      key: Array, *, made_from: Mapping[str, Any],
  ) -> ValueData:
    """Collects the roll-outs from the cuts of each roll-in, or reads those of an earlier process.

    Args:
      name: responses go to WORKDIR/NAME.jsonl.
      roll_in: samples the roll-ins.
      cut: (lengths [P, K · num_cuts], random numbers) -> `Cuts`.
      key: PRNG key, of this collection only.
      made_from: what the roll-ins and cuts depend on; with the rest, the file's first line.

    Returns:
      The responses, with their rewards as targets.

    Raises:
      ValueError: if the workdir holds responses of something else.
      SystemExit: if Ctrl-C was pressed; the responses so far are saved.
    """
    setup = self._setup
    batches = setup.prompt_batches(self.prompts, self._batch_size)
    provenance = {
        'task': setup.task.name, 'reference': self._reference.fingerprint,
        'seed': setup.run.seed, 'batch_size': self._batch_size, 'prompts': len(self.prompts),
        'num_cuts': self._num_cuts,
        **self._options, **self._reference_options, **made_from}

    path = setup.run.workdir / f'{name}.jsonl'
    with records_lib.open_records(path, provenance, batch=1, total=len(batches)) as file:
      done = len(file.records)
      with loop.progress(len(batches), name, done) as bar:
        for index in range(done, len(batches)):
          file.append(self._collect(batches[index], index, roll_in, cut, key))
          bar.update(1, reward=float(np.mean(file.records[-1]['rewards'])))
          setup.run.save_clock()
          setup.stopper.check(f'stopped in {name}; all complete batches are saved')
      return self._read(file.records)

  def _collect(self, prompts, index, roll_in, cut, key) -> dict[str, Any]:
    """Returns the record of one batch."""
    in_key, out_key = (jax.random.fold_in(jax.random.fold_in(key, index), i) for i in range(2))
    rolled_in = roll_in(prompts, in_key)
    repeated = rolled_in.samples(np.repeat(np.arange(rolled_in.lengths.shape[1]), self._num_cuts))
    entropy = [int(x) for x in np.asarray(jax.random.key_data(key)).ravel()]
    cuts = cut(np.asarray(repeated.lengths), np.random.default_rng([*entropy, index]))
    given = decode.Given(repeated.tokens, self._setup.put(cuts.given.astype(np.int32)))
    rollouts = self._continue(self._reference.params, *prompts[:3], out_key, given)
    real = evaluator.real_rows(rollouts, prompts)
    scored = rollout_rewards.score_rollouts(
        real, prompts.examples, tokenizer=self._setup.task.tokenizer,
        reward_fn=self._setup.task.reward_fn)

    count = len(prompts.examples)
    sampled = np.asarray(rolled_in.lengths)[:count].sum() + np.asarray(real.mask).sum()
    return {
        'ids': [example['id'] for example in prompts.examples],
        'tokens': [[row[:n].tolist() for row, n in zip(rows, lengths)] for rows, lengths in zip(
            np.asarray(real.tokens), scored.lengths)],
        'first': cuts.first[:count].tolist(), 'rewards': scored.rewards.tolist(),
        'truncated': scored.truncated.tolist(), 'sampled_tokens': int(sampled)}

  def _read(self, records: Sequence[Mapping[str, Any]]) -> ValueData:
    row_of = {int(x): row for row, x in enumerate(self.prompts.ids)}

    def flat(name, dtype):
      return np.array([x for record in records for row in record[name] for x in row], dtype)

    responses = [ids for record in records for row in record['tokens'] for ids in row]
    tokens = np.full(
        (len(responses), self._options['max_tokens']), self._options['pad_id'], np.int32)
    for row, ids in enumerate(responses):
      tokens[row, : len(ids)] = ids
    rows = [row_of[x] for record in records for x, row in zip(record['ids'], record['tokens'])
            for _ in row]
    return ValueData(
        self.prompts, np.array(rows), tokens,
        np.array([len(ids) for ids in responses], np.int32), flat('first', np.int32),
        flat('truncated', bool), flat('rewards', np.float32),
        sum(record['sampled_tokens'] for record in records))
