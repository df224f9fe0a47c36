"""Final report of a policy trained with a learned reward model: table, figure, results.json."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm.runs import figures, launch
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics


def write(
    setup: setup_lib.Setup, trained: Mapping[str, Any], *, more: str = ''
) -> None:
  """Writes table.md, the figure with its CSV, and results.json.

  Args:
    setup: setup of the run.
    trained: {'tokens': sampled tokens, 'numbers': result of `policy_evaluation.Evaluation`}.
    more: a second table, in Markdown.
  """
  run, numbers = setup.run, trained['numbers']

  def row(policy, wins, tokens):
    def cell(name):
      return figures.decimal(numbers, f'eval/{policy}/{name}', 3)

    return [
        policy, cell('score'), cell('decoded_score'), wins, cell('kl_to_reference'),
        f'{numbers[f"eval/{policy}/length"]:.1f}',
        f'{100 * numbers[f"eval/{policy}/truncated"]:.1f}', tokens]

  # The reference has no win rate against itself, and cost no samples.
  table = figures.markdown_table(
      ['policy', 'reward model score', f'at temperature {run.config.evaluation.temperature:g}',
       'wins over the reference (%)', 'KL to reference (nats)', 'tokens', 'truncated (%)',
       'sampled tokens'],
      [row('reference', '-', '-'),
       row('trained', figures.percent(numbers, 'eval/trained/win_rate'),
           f'{trained["tokens"]:,}')],
  )
  table = f'{table}\n\n{more}' if more else table

  caption = (
      f'{setup.describe()}; {numbers["eval/prompts"]} held-out prompts, judged by the reward model '
      f'that was trained on; seed {run.seed}.'
  )
  metrics.write_text_atomic(run.table_path, f'{table}\n\n{caption}\n')

  records = metrics.read_jsonl(run.workdir / 'metrics.jsonl')
  _figure(run.workdir / 'figures' / 'score.png', [r for r in records if 'eval/score' in r],
          title=f'{run.setting}, seed {run.seed}')

  seconds = {name for record in records for name in record if name.startswith('time/')}
  launch.write_results(run, {
      **numbers, 'sampled_tokens': trained['tokens'],
      **{name: sum(r.get(name, 0.0) for r in records) for name in sorted(seconds)},
  })

  print(f'\n{table}\n\n{caption}\n\nwritten to {run.workdir}: results.json, table.md, '
        'metrics.jsonl, samples.jsonl, trained/, figures/', flush=True)


def _figure(path: pathlib.Path, curve: Sequence[Mapping[str, float]], *, title: str) -> None:
  """Plots scores against sampled tokens and KL divergence; writes a PNG and a CSV."""
  columns = {name: [record[f'eval/{name}'] for record in curve] for name in (
      'sampled_tokens', 'kl_to_reference', 'score', 'decoded_score')}
  with figures.figure(path, 2, title=title, size=(9.6, 4.0), share_y=True) as panels:
    for axes, name, label in (
        (panels[0], 'sampled_tokens', 'sampled tokens'),
        (panels[1], 'kl_to_reference', 'KL to the reference (nats per response)'),
    ):
      axes.plot(columns[name], columns['score'], 'o-', ms=4, color='#1b6ca8', label='sampled')
      axes.plot(columns[name], columns['decoded_score'], 's--', ms=4, color='#d1495b',
                label='near-greedy')
      axes.set_xlabel(label)

    panels[0].set_ylabel('reward model score')
    panels[0].legend(frameon=False)

  metrics.write_csv_atomic(path.with_suffix('.csv'), list(columns), zip(*columns.values()))
