"""Evaluation on held-out problems by the task's verifier, and what reports make of it."""

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm.evaluation import evaluator, statistics
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.runs import figures, launch, references
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics
from jaxrl_llm.types import Params


class Evaluation:
  """Evaluates the policy and shows the same few problems each time.

  Attributes:
    last: the latest `evaluator.Evaluation`.
  """

  def __init__(
      self,
      setup: setup_lib.Setup,
      reference: references.Reference,
      samples: metrics.JsonlFile,
  ):
    self._setup, self._reference, self._samples = setup, reference, samples
    self._evaluate = setup.evaluator
    self.last: evaluator.Evaluation | None = None

  def __call__(self, params: Params, step: int, tokens: int) -> dict[str, float]:
    """Evaluates, appends to samples.jsonl, and returns `eval/...` metrics.

    Args:
      params: the policy's parameters.
      step: batches trained on so far.
      tokens: tokens sampled for training so far.
    """
    self.last = self._evaluate(params, self._reference.of(params))

    # The evaluator's examples, not the task's: it drops problems that are too long.
    shown = self._evaluate.examples[: self._setup.config.evaluation.num_shown]
    for kind, scored in (('sampled', self.last.sampled), ('greedy', self.last.greedy)):
      for i, example in enumerate(shown):
        self._samples.write({
            'step': step, 'kind': kind, 'id': example['id'], 'prompt': example['prompt'],
            'answer': example['answer'], 'response': scored.responses[i][0],
            'reward': float(scored.rewards[i, 0]),
            'stop_reason': 'truncated' if scored.truncated[i, 0] else 'stopped',
        })

    return {
        **{f'eval/{name}': value for name, value in self.last.numbers.items()},
        'eval/sampled_tokens': tokens,
    }


def rollout_metrics(scored: rollout_rewards.Scored, tokens: int) -> dict[str, float]:
  """Returns metrics of a batch of rollouts; `tokens` is the number sampled so far."""
  return {
      'rollout/reward': scored.rewards.mean(), 'rollout/length': scored.lengths.mean(),
      'rollout/truncated': scored.truncated.mean(), 'rollout/sampled_tokens': tokens,
  }


def compare(
    setup: setup_lib.Setup, reference: Params, trained: evaluator.Evaluation
) -> dict[str, dict[str, float]]:
  """Returns the numbers of 'reference', 'control' and 'trained'.

  The control is the reference at a lower temperature: part of what training gains is often form.
  """
  evaluate, config = setup.evaluator, setup.config.evaluation
  control = setup.sampler(
      num_samples=config.num_samples, temperature=config.control_temperature)
  return {
      'reference': evaluate(reference, reference).numbers,
      'control': evaluate.sampled_only(reference, control),
      'trained': trained.numbers,
  }


def flat(
    policies: Mapping[str, Mapping[str, float]], trained: evaluator.Evaluation,
    curve: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
  """Returns the headline numbers for results.json.

  Args:
    policies: numbers of each policy, from `compare`.
    trained: the trained policy's evaluation.
    curve: records of metrics.jsonl with an evaluation.
  """
  numbers = {
      f'eval/{policy}/{name}': value
      for policy, values in policies.items() for name, value in values.items()}
  reached = statistics.first_crossing(
      [record['eval/sampled_tokens'] for record in curve],
      [record['eval/pass@1'] for record in curve], level=0.9)
  if reached < math.inf:
    numbers['eval/trained/tokens_to_pass@1_0.9'] = reached
  numbers['eval/problems'] = len(trained.sampled.responses)

  # Of this process, which may have resumed the run.
  unit = 1 if sys.platform == 'darwin' else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return numbers | {'memory/host_peak_bytes': unit * peak}


def rows(
    setup: setup_lib.Setup, policies: Mapping[str, Mapping[str, float]]
) -> dict[str, list[str]]:
  """Returns the cells name, pass@1, greedy accuracy and divergence of the policies' table rows."""
  names = {
      'reference': 'reference',
      'control': f'reference at temperature {setup.config.evaluation.control_temperature:g}',
      'trained': 'trained',
  }
  divergences = {
      'reference': '0', 'control': '-',
      'trained': figures.decimal(policies['trained'], 'kl_to_reference', 3)}
  greedy = policies | {'control': policies['reference']}  # Temperature 0 has no temperature.
  return {
      policy: [name, figures.percent(policies[policy], 'pass@1'),
               figures.percent(greedy[policy], 'greedy_accuracy'), divergences[policy]]
      for policy, name in names.items()
  }


def training_seconds(records: Sequence[Mapping[str, float]]) -> tuple[float, float]:
  """Returns the seconds of training and of evaluation in metrics.jsonl.

  Training counts sampling, reward and update; the cost of a restart is excluded.
  """
  def total(name: str) -> float:
    return sum(record.get(f'time/{name}_seconds', 0.0) for record in records)

  return total('sample') + total('reward') + total('train'), total('evaluate')


def learning_curve(
    run: launch.Run, curve: Sequence[Mapping[str, float]], *, title: str, stage1_tokens: int = 0
) -> None:
  """Writes WORKDIR/figures/learning_curve.png: accuracy against sampled tokens."""
  figures.learning_curve(
      run.workdir / 'figures' / 'learning_curve.png',
      [record['eval/sampled_tokens'] for record in curve],
      {
          'pass@1, sampled': [record['eval/pass@1'] for record in curve],
          'accuracy, greedy': [record['eval/greedy_accuracy'] for record in curve],
      },
      title=title, stage1_tokens=stage1_tokens,
  )
