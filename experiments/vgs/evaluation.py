"""Search, and votes of independent samples, on held-out problems at equal budgets."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrl_llm.algorithms import vgs
from jaxrl_llm.evaluation import search, statistics, voting
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import references, value_models, voting_rules
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tasks import noisy_sum
from jaxrl_llm.training import loop, rng
from jaxrl_llm.types import STOPPED, TRUNCATED, Params, Rollouts


class Pool(NamedTuple):
  """Responses to P problems, n each.

  Attributes:
    rewards: float [P, n].
    groups: int [P, n]; their answers, see `majority.group_answers`.
    scores: float [P, n]; by the value model or what replaces it.
    sampled_tokens: int [P]; tokens sampled, those of dropped blocks included.
    scored_tokens: int [2]; tokens that the scorer read once, and that it computed.
  """

  rewards: np.ndarray
  groups: np.ndarray
  scores: np.ndarray
  sampled_tokens: np.ndarray
  scored_tokens: np.ndarray


def search_all(
    setup: setup_lib.Setup, reference: references.Reference, model: value_models.ValueModel,
    params: Params, *, made_from: Mapping[str, str],
) -> dict[str, Pool]:
  """Searches with every scorer at every budget; finished arms are read from disk.

  Args:
    setup: the run's setup.
    reference: π_ref.
    model: the value model.
    params: its parameters.
    made_from: fingerprints of both.

  Returns:
    Pools by arm: 'samples' (as many independent ones as the largest budget), 'SCORER@N', and
    'dvts@N' for the largest N.
  """
  run, config = setup.run, setup.config
  largest = config.budgets[-1]
  whole = search.Config(
      num_blocks=largest, width=1, block_tokens=setup.task.max_response_tokens)
  arms: dict[str, tuple[str, search.Config]] = {'samples': ('value', whole)}
  arms |= {f'{scorer}@{budget}': (scorer, config.search(budget))
           for scorer in config.scorers.split(',') for budget in config.budgets}
  if config.trees > 1:
    arms[f'dvts@{largest}'] = ('value', config.search(largest, trees=config.trees))

  pools = {}
  for arm, (scorer, budget) in arms.items():
    pools[arm] = Pool(**arms_lib.finished(
        run.workdir / 'evaluation' / f'{arm}.npz',
        arms_lib.identity_of('vgs', config, arm=arm, **made_from),
        functools.partial(
            _search, setup, reference, _make_scorer(setup, scorer, model, params), budget,
            title=arm),
        commit=run.commit))
    setup.stopper.check('stopped in the evaluation; finished arms are saved')
  return pools


def _make_scorer(
    setup: setup_lib.Setup, name: str, model: value_models.ValueModel, params: Params
) -> Callable[[Any], search.Scorer]:
  """Returns a function from the examples of a batch to their scorer."""
  if name == 'value':
    scorer = search.ValueScorer(model.network, vgs.HEADS[setup.config.algorithm.loss], params)
    return lambda examples: scorer
  if name == 'random':  # All scores are equal, and ties are broken at random.
    return lambda examples: search.FunctionScorer(lambda rows: np.zeros(len(rows.problems)))

  task, decode = setup.config.task, setup.task.tokenizer.decode

  def of_batch(examples):
    def exact(candidates: search.Candidates) -> np.ndarray:
      texts = [decode(row[:n]) for row, n in zip(candidates.tokens, candidates.lengths)]
      return np.array([
          noisy_sum.prefix_values(examples[problem], text, task.error_rate)[-1] if text else 0.0
          for problem, text in zip(candidates.problems, texts)])

    return search.FunctionScorer(exact)

  return of_batch


def _search(
    setup: setup_lib.Setup, reference: references.Reference,
    scorer_of: Callable[[Any], search.Scorer], budget: search.Config, *, title: str,
) -> dict[str, np.ndarray]:
  """Searches for responses to all held-out problems; returns the fields of `Pool`."""
  config, task = setup.config, setup.task
  run = search.Search(
      setup.policy, budget, max_tokens=task.max_response_tokens,
      stop_ids=task.tokenizer.stop_ids, pad_id=task.tokenizer.pad_id,
      temperature=config.temperature, top_p=config.top_p)
  rule = voting_rules.of_task(config.task)
  key = rng.stream_key(setup.key, rng.Stream.SAMPLE_EVAL)
  encoded = setup.encode(task.evaluation).trimmed()

  parts, scored_tokens = [], np.zeros(2, np.int64)
  for chunk in loop.Tracked(
      _chunks(len(encoded), config.evaluation.batch_size), title):
    examples = [encoded.examples[i] for i in chunk]
    scorer = scorer_of(examples)
    before = _tokens_of(scorer)
    result = run(
        reference.params, scorer, encoded.prompts[chunk], encoded.prompt_lengths[chunk],
        encoded.ids[chunk], key)
    scored_tokens += _tokens_of(scorer) - before
    scored = rollout_rewards.score_rollouts(
        _as_rollouts(encoded.prompts[chunk], encoded.prompt_lengths[chunk], result), examples,
        tokenizer=task.tokenizer, reward_fn=task.reward_fn)
    parts.append((scored.rewards, rule.groups(scored), result.scores, result.sampled_tokens))

  columns = [np.concatenate(column) for column in zip(*parts)]
  return dict(zip(Pool._fields, [*columns, scored_tokens]))


def _chunks(count: int, size: int) -> list[np.ndarray]:
  """Returns the indices of consecutive batches; the last one may be smaller."""
  return np.array_split(np.arange(count), range(size, count, size))


def _tokens_of(scorer: search.Scorer) -> np.ndarray:
  return np.array([getattr(scorer, 'cached_tokens', 0), getattr(scorer, 'computed_tokens', 0)])


def _as_rollouts(
    prompts: np.ndarray, prompt_lengths: np.ndarray, result: search.SearchResult
) -> Rollouts:
  mask = np.arange(result.tokens.shape[-1]) < result.lengths[..., None]
  return Rollouts(
      prompts, prompt_lengths, result.tokens, result.lengths, mask.astype(np.float32),
      np.zeros(result.tokens.shape, np.float32),
      np.where(result.stopped, STOPPED, TRUNCATED).astype(np.int8))


def numbers_of(pools: Mapping[str, Pool], budgets: tuple[int, ...]) -> dict[str, float]:
  """Returns accuracies with standard errors over problems, and tokens per problem.

  Args:
    pools: from `search_all`.
    budgets: N.

  Returns:
    'pass@1'; for each N, of independent samples 'mv@N', 'wmv@N', 'bon@N' and 'pass@N', and of
    each search 'vgs@N' ('SCORER/vgs@N' for other scorers than the value model): its weighted
    majority vote; '.../best@N', the response of highest value, and '.../beam@N', the mean response.
  """
  samples, numbers = pools['samples'], {}

  def add(name, of_problem, tokens=None):
    numbers[name], numbers[f'{name}_se'] = statistics.mean_and_standard_error(
        np.asarray(of_problem, np.float64))
    if tokens is not None:
      numbers[f'{name}_tokens'] = float(np.mean(tokens))

  add('pass@1', samples.rewards.mean(axis=1), samples.sampled_tokens / samples.rewards.shape[1])
  for n in budgets:
    groups, rewards, scores = (
        x[:, :n] for x in (samples.groups, samples.rewards, samples.scores))
    tokens = samples.sampled_tokens * n / samples.rewards.shape[1]
    add(f'mv@{n}', voting.weighted_vote(groups, rewards), tokens)
    add(f'wmv@{n}', voting.weighted_vote(groups, rewards, scores), tokens)
    add(f'bon@{n}', _best(scores, rewards), tokens)
    add(f'pass@{n}', rewards.max(axis=1), tokens)

  for arm, pool in pools.items():
    if arm == 'samples':
      continue
    scorer, _, n = arm.partition('@')
    prefix = '' if scorer == 'value' else f'{scorer}/'
    add(f'{prefix}vgs@{n}', voting.weighted_vote(pool.groups, pool.rewards, pool.scores),
        pool.sampled_tokens)
    add(f'{prefix}best@{n}', _best(pool.scores, pool.rewards))
    add(f'{prefix}beam@{n}', pool.rewards.mean(axis=1))
  return numbers


def _best(scores: np.ndarray, rewards: np.ndarray) -> np.ndarray:
  """Rewards [P] of the responses of highest score; tied ones count with equal weight."""
  best = scores == scores.max(axis=1, keepdims=True)
  return (rewards * best).sum(axis=1) / best.sum(axis=1)
