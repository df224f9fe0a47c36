"""Final table, figure and results.json of an online RL run."""

from typing import Any

from jaxrl_llm.runs import figures, launch, verifier_evaluation
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics


def write(setup: setup_lib.Setup, trained: dict[str, Any]) -> None:
  """Evaluates the reference and its control, and writes table.md, the figure and results.json.

  Args:
    setup: the run's setup.
    trained: what `train` returned.
  """
  run, config, reference = setup.run, setup.config, trained['reference']
  policies = verifier_evaluation.compare(
      setup, reference.of(trained['params']), trained['evaluation'])
  records = metrics.read_jsonl(run.workdir / 'metrics.jsonl')
  curve = [record for record in records if 'eval/pass@1' in record]
  verifier_evaluation.learning_curve(
      run, curve, title=f'{config.name} on {setup.task.name}, seed {run.seed}')
  training, evaluation = verifier_evaluation.training_seconds(records)

  rows = verifier_evaluation.rows(setup, policies)
  rows['trained'][0] += f' ({config.name})'
  costs = {'trained': [f'{trained["tokens"]:,}', f'{training:.0f}']}
  table = figures.markdown_table(
      ['policy', 'pass@1 (%)', 'greedy (%)', 'KL to reference (nats)', 'tokens', 'seconds'],
      [row + costs.get(policy, ['-', '-']) for policy, row in rows.items()])
  table += (
      f'\n\n{setup.describe()}; seed {run.seed}; {config.evaluation.num_samples} samples per '
      f'problem; {config.algorithm.samples_per_prompt} samples per prompt in training.')
  metrics.write_text_atomic(run.table_path, table + '\n')

  launch.write_results(run, {
      'algorithm': config.name, 'fingerprint/reference': reference.fingerprint,
      **verifier_evaluation.flat(policies, trained['evaluation'], curve),
      'sampled_tokens': trained['tokens'], 'time/reference_seconds': reference.seconds,
      'time/training_seconds': training, 'time/evaluation_seconds': evaluation,
  })
  print(f'\n{table}\n\nwritten to {run.workdir}: results.json, table.md, metrics.jsonl, '
        'samples.jsonl, figures/', flush=True)
