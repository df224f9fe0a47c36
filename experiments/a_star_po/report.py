"""Final table, figures and results.json of an A*-PO run."""

from typing import Any

import numpy as np

from experiments.a_star_po import stage1 as stage1_lib
from jaxrl_llm.rl import soft_values
from jaxrl_llm.runs import figures, launch, references, verifier_evaluation
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics
from jaxrl_llm.types import Params


def write(
    setup: setup_lib.Setup,
    reference: references.Reference,
    stage1: stage1_lib.ReferenceValues,
    trained: dict[str, Any],
) -> None:
  """Evaluates the reference and its control, and writes table.md, figures and results.json."""
  run = setup.run
  base = reference.of(trained['params'])
  policies = verifier_evaluation.compare(setup, base, trained['evaluation'])

  records = metrics.read_jsonl(run.workdir / 'metrics.jsonl')
  curve = [record for record in records if 'eval/pass@1' in record]
  _figures(setup, base, stage1, curve)
  seconds = _seconds(run, records)

  tokens = {'stage1': stage1.tokens, 'stage2': trained['tokens']}
  table = _table(setup, policies, tokens, seconds)
  metrics.write_text_atomic(run.table_path, table + '\n')

  numbers: dict[str, Any] = {
      'fingerprint/reference': reference.fingerprint,
      **verifier_evaluation.flat(policies, trained['evaluation'], curve)}
  numbers |= {f'sampled_tokens/{stage}': count for stage, count in tokens.items()}
  launch.write_results(run, numbers | stage1.summary() | seconds)
  print(f'\n{table}\n\nwritten to {run.workdir}: results.json, table.md, metrics.jsonl, '
        'samples.jsonl, v_star.json, figures/', flush=True)


def _table(
    setup: setup_lib.Setup, policies: dict[str, dict[str, float]], tokens: dict[str, int],
    seconds: dict[str, float],
) -> str:
  """Returns the final table with its caption."""
  config, algorithm = setup.config.evaluation, setup.config.algorithm
  costs = {
      'reference': ['-', '-', f'{seconds["time/reference_seconds"]:.0f}'],
      'control': ['-', '-', '-'],
      'trained': [
          f'{tokens["stage1"]:,}', f'{tokens["stage2"]:,}',
          f'{seconds["time/stage1_seconds"] + seconds["time/stage2_seconds"]:.0f}'],
  }
  rows = verifier_evaluation.rows(setup, policies)
  rows['trained'][0] += ' (A*-PO)'
  table = figures.markdown_table(
      ['policy', 'pass@1 (%)', 'greedy (%)', 'KL to reference (nats)', 'tokens, stage 1',
       'tokens, stage 2', 'seconds'],
      [row + costs[policy] for policy, row in rows.items()])
  caption = (
      f'{setup.describe()}; seed {setup.run.seed}; {config.num_samples} samples per problem; '
      f'V* from N = {algorithm.samples_per_prompt} samples at beta1 = {algorithm.beta1:g} '
      f'({algorithm.value_mode}), beta2 = {algorithm.beta2:g}.'
  )

  return f'{table}\n\n{caption}'


def _seconds(run: launch.Run, records: list[dict[str, float]]) -> dict[str, float]:
  """Returns the seconds of each phase, including those of killed processes."""
  training, evaluation = verifier_evaluation.training_seconds(records)
  return {
      'time/reference_seconds': run.marks['reference'],
      'time/stage1_seconds': run.marks['stage1'] - run.marks['reference'],
      'time/stage2_seconds': training,
      'time/evaluation_seconds': evaluation,
  }


def _figures(
    setup: setup_lib.Setup, base: Params, stage1: stage1_lib.ReferenceValues,
    curve: list[dict[str, float]],
) -> None:
  """Writes the learning curve, and V* of stage 1 against measured success rates."""
  run = setup.run
  verifier_evaluation.learning_curve(
      run, curve, title=f'A*-PO on {setup.task.name}, seed {run.seed}',
      stage1_tokens=stage1.tokens)

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
