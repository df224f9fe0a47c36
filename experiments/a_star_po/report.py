"""Evaluation during an A*-PO run, and its final table, figures and results.json."""

import math
from typing import Any

import numpy as np

from experiments.a_star_po import stage1 as stage1_lib
from jaxrl_llm.evaluation import evaluator, statistics
from jaxrl_llm.rl import soft_values
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
      step: batches of stage 2 so far.
      tokens: sampled tokens of both stages so far.
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


def write(
    setup: setup_lib.Setup,
    reference: references.Reference,
    stage1: stage1_lib.ReferenceValues,
    trained: dict[str, Any],
) -> None:
  """Evaluates the reference and its control, and writes table.md, figures and results.json."""
  run, evaluate = setup.run, setup.evaluator
  base = reference.of(trained['params'])
  before = evaluate(base, base).numbers
  control = evaluate.sampled_only(
      base,
      setup.sampler(
          num_samples=setup.config.evaluation.num_samples,
          temperature=setup.config.evaluation.control_temperature),
  )
  after = trained['evaluation'].numbers

  records = metrics.read_jsonl(run.workdir / 'metrics.jsonl')
  curve = [record for record in records if 'eval/pass@1' in record]
  _figures(setup, base, stage1, curve)
  seconds = _seconds(run, records)

  tokens = {'stage1': stage1.tokens, 'stage2': trained['tokens']}
  table = _table(setup, before, control, after, tokens, seconds)
  metrics.write_text_atomic(run.table_path, table + '\n')

  numbers: dict[str, Any] = {'fingerprint/reference': reference.fingerprint}
  for policy, values in (('reference', before), ('control', control), ('trained', after)):
    numbers |= {f'eval/{policy}/{name}': value for name, value in values.items()}
  reached = statistics.first_crossing(
      [record['eval/sampled_tokens'] for record in curve],
      [record['eval/pass@1'] for record in curve], level=0.9)
  if reached < math.inf:
    numbers['eval/trained/tokens_to_pass@1_0.9'] = reached

  numbers['eval/problems'] = len(trained['evaluation'].sampled.responses)
  numbers |= {f'sampled_tokens/{stage}': count for stage, count in tokens.items()}
  launch.write_results(run, numbers | stage1.summary() | seconds)
  print(f'\n{table}\n\nwritten to {run.workdir}: results.json, table.md, metrics.jsonl, '
        'samples.jsonl, v_star.json, figures/', flush=True)


def _table(
    setup: setup_lib.Setup, before: dict[str, float], control: dict[str, float],
    after: dict[str, float], tokens: dict[str, int], seconds: dict[str, float],
) -> str:
  """Returns the final table with its caption."""
  config, algorithm = setup.config.evaluation, setup.config.algorithm
  kl = figures.decimal(after, 'kl_to_reference', 3)
  table = figures.markdown_table(
      ['policy', 'pass@1 (%)', 'greedy (%)', 'KL to reference (nats)', 'tokens, stage 1',
       'tokens, stage 2', 'seconds'],
      [
          ['reference', figures.percent(before, 'pass@1'),
           figures.percent(before, 'greedy_accuracy'), '0', '-', '-',
           f'{seconds["time/reference_seconds"]:.0f}'],
          [f'reference at temperature {config.control_temperature:g}',
           figures.percent(control, 'pass@1'), figures.percent(before, 'greedy_accuracy'), '-',
           '-', '-', '-'],
          ['trained (A*-PO)', figures.percent(after, 'pass@1'),
           figures.percent(after, 'greedy_accuracy'), kl, f'{tokens["stage1"]:,}',
           f'{tokens["stage2"]:,}',
           f'{seconds["time/stage1_seconds"] + seconds["time/stage2_seconds"]:.0f}'],
      ],
  )
  caption = (
      f'{setup.describe()}; seed {setup.run.seed}; {config.num_samples} samples per problem; '
      f'V* from N = {algorithm.samples_per_prompt} samples at beta1 = {algorithm.beta1:g} '
      f'({algorithm.value_mode}), beta2 = {algorithm.beta2:g}.'
  )

  return f'{table}\n\n{caption}'


def _seconds(run: launch.Run, records: list[dict[str, float]]) -> dict[str, float]:
  """Returns the seconds of each phase, including those of killed processes.

  Stage 2 counts sampling, reward and update. Its evaluations are separate, and the cost of a
  restart is excluded.
  """
  def total(name: str) -> float:
    return sum(record.get(f'time/{name}_seconds', 0.0) for record in records)

  return {
      'time/reference_seconds': run.marks['reference'],
      'time/stage1_seconds': run.marks['stage1'] - run.marks['reference'],
      'time/stage2_seconds': total('sample') + total('reward') + total('train'),
      'time/evaluation_seconds': total('evaluate'),
  }


def _figures(
    setup: setup_lib.Setup, base: Params, stage1: stage1_lib.ReferenceValues,
    curve: list[dict[str, float]],
) -> None:
  """Writes the learning curve, and V* of stage 1 against measured success rates."""
  run = setup.run
  figures.learning_curve(
      run.workdir / 'figures' / 'learning_curve.png',
      [record['eval/sampled_tokens'] for record in curve],
      {
          'pass@1, sampled': [record['eval/pass@1'] for record in curve],
          'accuracy, greedy': [record['eval/greedy_accuracy'] for record in curve],
      },
      title=f'A*-PO on {setup.task.name}, seed {run.seed}',
      stage1_tokens=stage1.tokens,
  )

  algorithm = setup.config.algorithm
  if algorithm.value_mode == 'zero':
    return
  measured = stage1_lib.measure_success(setup, base, stage1)
  if measured is None:
    return

  rates = np.linspace(0, 1, 201).astype(np.float32)
  exact, label = {
      'softmax': (
          lambda p: soft_values.binary_v_star(p, beta=algorithm.beta1),
          f'β₁ ln(1 − p + p exp(1/β₁)), β₁ = {algorithm.beta1:g}',
      ),
      'mean': (lambda p: p, 'mean reward p'),
      'max': (lambda p: (p > 0).astype(np.float32), 'largest reward'),
  }[algorithm.value_mode]

  figures.value_figure(
      run.workdir / 'figures' / 'v_star.png', *measured, (rates, np.asarray(exact(rates))),
      title=f'V* ({algorithm.value_mode}) of {setup.task.name}, seed {run.seed}', label=label,
      samples=(algorithm.samples_per_prompt, setup.config.evaluation.diagnosed_samples),
  )
