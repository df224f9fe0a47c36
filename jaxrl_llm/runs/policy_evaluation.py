"""Evaluation on held-out prompts by the reward model, and warnings about the target scale."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxrl_llm.evaluation import evaluator, statistics, win_rate
from jaxrl_llm.runs import references, reward_models, training_loop
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, metrics, monitors, rng
from jaxrl_llm.types import Params, Rollouts, SampleFn


class Evaluation:
  """Samples responses to the held-out prompts with fixed noise, and scores them.

  Attributes:
    examples: the prompts, in the order of all results.
    scores: float32 [N, K]; raw reward model scores of the last call.
  """

  def __init__(
      self,
      setup: setup_lib.Setup,
      reward: reward_models.RewardModel,
      samples: metrics.JsonlFile,
  ):
    """Sets up the evaluation; compiles nothing yet.

    Args:
      setup: setup of the run; scores, lengths and the KL divergence are measured at the
        temperature of its algorithm.
      reward: the reward model.
      samples: the JSONL file of shown responses.
    """
    self._setup, self._reward, self._samples = setup, reward, samples
    self._config = setup.config.evaluation

    encoded = setup.encode(setup.task.evaluation)
    self._batches = setup.prompt_batches(encoded, self._config.batch_size)
    self.examples = encoded.examples
    self.scores: np.ndarray | None = None

    self._sample = setup.sampler(
        num_samples=self._config.num_samples, temperature=setup.config.algorithm.temperature)
    self._decode = setup.sampler(num_samples=1, temperature=self._config.temperature)
    self._kl = divergence(setup)

  def __call__(
      self, params: Params, reference: Params, *, step: int | None = None
  ) -> dict[str, float]:
    """Evaluates a policy and returns numbers by flat name.

    `score` (the reward model's), `reward` (after scale and penalty), `length` (tokens),
    `truncated` and `kl_to_reference` (nats per response, excluding padding) are for samples at
    the training temperature; `decoded_...` are for responses at `evaluation.temperature`.

    Args:
      params: the policy's parameters.
      reference: the parameters of π_ref.
      step: if given, responses are written to samples.jsonl with this step.
    """
    sampled = list(self._score(self._sample, params, 'sampled', step, reference))
    decoded = list(self._score(self._decode, params, 'decoded', step))

    def column(rows, name):
      return np.concatenate([row[name] for row in rows]).astype(np.float64)

    self.scores = column(sampled, 'scores')

    numbers: dict[str, float] = {}
    for prefix, rows, names in (
        ('', sampled, ('scores', 'rewards', 'kl_to_reference', 'lengths', 'truncated')),
        ('decoded_', decoded, ('scores', 'lengths', 'truncated')),
    ):
      for name in names:
        short = prefix + name.removesuffix('s')
        values = column(rows, name).mean(axis=1)
        numbers[short], error = statistics.mean_and_standard_error(values[np.isfinite(values)])
        if name in ('scores', 'rewards', 'kl_to_reference'):
          numbers[f'{short}_se'] = error
    return numbers

  def metrics(
      self, params: Params, reference: Params, step: int, tokens: int
  ) -> dict[str, float]:
    """Returns `eval/...` metrics with the tokens sampled so far; writes responses."""
    numbers = self(params, reference, step=step)
    return {**{f'eval/{name}': x for name, x in numbers.items()}, 'eval/sampled_tokens': tokens}

  def against_reference(self, params: Params, reference: Params) -> dict[str, float]:
    """Returns the headline numbers: `eval/trained/...`, `eval/reference/...`, and the win rate."""
    numbers = {f'eval/trained/{name}': x for name, x in self(params, reference).items()}
    scores = self.scores
    numbers |= {f'eval/reference/{name}': x for name, x in self(reference, reference).items()}
    # Prompts with a non-finite score are excluded.
    known = np.isfinite(scores).all(axis=1) & np.isfinite(self.scores).all(axis=1)
    rate, error = win_rate.win_rate(scores[known], self.scores[known])
    return numbers | {
        'eval/trained/win_rate': rate, 'eval/trained/win_rate_se': error,
        'eval/prompts': len(self.examples),
    }

  def _score(
      self, sample: SampleFn, params: Params, kind: str, step: int | None,
      reference: Params | None = None,
  ) -> Iterator[dict[str, Any]]:
    """Yields the results of each batch, without the padding of the last one."""
    key = rng.stream_key(self._setup.key, rng.Stream.SAMPLE_EVAL)
    shown = 0 if step is None else self._config.num_shown

    for batch in loop.Tracked(self._batches, f'evaluation ({kind})'):
      rollouts = sample(params, *batch[:3], key)

      # Score before cutting, so that only one shape is compiled.
      examples = [*batch.examples]
      examples += [examples[0]] * (len(batch.prompts) - len(examples))

      row = self._reward(rollouts, examples)._asdict()
      if reference is not None:
        row['kl_to_reference'] = np.asarray(self._kl(params, reference, rollouts))

      real = len(batch.examples)
      self._show(rollouts, row, batch.examples[:shown], kind, step)
      shown -= min(shown, real)
      yield {name: values[:real] for name, values in row.items()}

  def _show(self, rollouts: Rollouts, row: Mapping[str, Any], examples, kind, step) -> None:
    tokens = np.asarray(rollouts.tokens)
    for i, example in enumerate(examples):
      ids = tokens[i, 0, : row['lengths'][i, 0]].tolist()
      self._samples.write({
          'step': step, 'kind': kind, 'id': example['id'], 'prompt': example['prompt'],
          'response': self._setup.task.tokenizer.decode(ids),
          'score': float(row['scores'][i, 0]),
          'stop_reason': 'truncated' if row['truncated'][i, 0] else 'stopped',
      })


def divergence(setup: setup_lib.Setup):
  """Makes a jitted (params, reference, rollouts) -> KL of each response [P, K], nats."""
  config = setup.config
  return jax.jit(lambda params, reference, rollouts: evaluator.response_kl(
      setup.policy, params, reference, rollouts, temperature=config.algorithm.temperature,
      chunk_size=config.evaluation.head_chunk))


def finish(
    setup: setup_lib.Setup, training: training_loop.TrainingLoop, evaluate: Evaluation,
    reference: references.Reference,
) -> dict[str, Any]:
  """Saves the trained policy, and logs its last evaluation.

  Args:
    setup: setup of the run.
    training: the complete training loop, whose metadata has 'tokens'.
    evaluate: the run's evaluation.
    reference: π_ref.

  Returns:
    {'tokens': sampled tokens, 'numbers': results of `Evaluation.against_reference`, and the
    fingerprints of the frozen parts}.
  """
  policy, tokens = training.state.params['policy'], training.metadata['tokens']
  setup.save_trained(policy)

  training.write(
      training.done, evaluate.metrics(policy, reference.of(policy), training.done, tokens))
  numbers = evaluate.against_reference(policy, reference.of(policy))
  numbers |= {f'fingerprint/{name}': value for name, value in training.fingerprints.items()}
  return {'tokens': tokens, 'numbers': numbers}


class TargetScaleMonitor:
  """Warns on stderr, once per problem, about suspicious metrics; the run continues.

  It checks the scale of η (r − r'): far above 50 the regression is never solved and the update is a
  pairwise policy gradient; far below 0.01 nothing is learned. It also checks that sampler and
  trainer give a token the same log-prob, and so do scoring and training (`loop.RatioWatch`).
  """

  SMALL, LARGE, GAP = 1e-2, 50.0, 0.05

  def __init__(self):
    self._warn = monitors.Warnings()
    self._check_ratio = loop.RatioWatch()

  def __call__(self, values: Mapping[str, float]) -> None:
    """Checks the metrics of one step."""
    self._check_ratio(values)
    target, gap = values['rollout/median_target'], values['train/sampler_gap']
    if target > self.LARGE:
      self._warn('large', f'median |eta (r - r\')| is {target:.3g}: the regression cannot be '
                'solved in a few steps (config.algorithm.eta, config.reward.scale)')
    elif target < self.SMALL:
      self._warn('small', f'median |eta (r - r\')| is {target:.3g}: hardly anything is learned '
                '(config.algorithm.eta, config.reward.scale)')

    if gap > self.GAP:
      self._warn('gap', f'sampler and trainer differ by {gap:.3g} nats a token')


def summarize(
    scored: reward_models.Scored, signal: np.ndarray, eta: float
) -> dict[str, float]:
  """Returns the metrics of a batch; non-finite scores are excluded.

  Args:
    scored: scores of the samples.
    signal: rewards [P, K], or preferences [P, K, M].
    eta: η, the scale of the targets.

  Returns:
    `rollout/...` metrics.
  """
  signal = signal.mean(axis=2) if signal.ndim == 3 else signal
  known = signal[np.isfinite(signal).all(axis=1)]
  # The difference of two samples; for more, that of the best and the worst.
  targets = eta * (known.max(axis=1) - known.min(axis=1))

  def mean(x):
    return float(np.mean(x[np.isfinite(x)])) if np.isfinite(x).any() else 0.0

  return {
      'rollout/score': mean(scored.scores), 'rollout/reward': mean(scored.rewards),
      'rollout/length': float(scored.lengths.mean()),
      'rollout/truncated': float(scored.truncated.mean()),
      'rollout/median_target': float(np.median(targets)) if len(targets) else 0.0,
  }
