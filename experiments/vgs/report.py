"""Report of value-guided search: the table, accuracy against tokens, results.json."""

from collections.abc import Mapping
from typing import Any

from experiments.vgs import evaluation
from jaxrl_llm.runs import figures, launch, memory
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tasks import noisy_sum
from jaxrl_llm.training import metrics

_METHODS = {
    'mv': 'majority vote', 'wmv': 'weighted majority vote', 'bon': 'best of N by value',
    'pass': 'any right (pass@N)', 'vgs': 'search, weighted vote', 'beam': 'search, mean response',
    'random/vgs': 'search by random choice, vote', 'exact/vgs': 'search by exact value, vote',
    'exact/beam': 'search by exact value, mean response', 'dvts/vgs': 'DVTS, weighted vote',
}


def closed_forms(config: Any) -> dict[str, float]:
  """Returns what noisy sums with exact values give: 'pass@1', 'bon@N', and one beam of width w.

  {} for other tasks, and for references that are not those of the task.
  """
  task = config.task
  if not isinstance(task, noisy_sum.Config) or config.policy_init_from:
    return {}
  right = noisy_sum.success_rate(task.num_sums, task.error_rate)
  forms = {'pass@1': right} | {
      f'bon@{n}': 1 - (1 - right) ** n for n in config.budgets}
  sums = config.block_tokens // 2  # A sum and the digit it adds.
  if not (config.block_tokens % 2 or task.num_sums % sums):
    forms['single_beam'] = noisy_sum.search_accuracy(
        task.num_sums, task.error_rate, block=sums, width=config.width)
  return forms


def flops(
    setup: setup_lib.Setup, value_weights: int, pools: Mapping[str, evaluation.Pool]
) -> dict[str, float]:
  """Returns floating-point operations per problem, 2 per weight and token, without attention.

  'generator', 'value_cached' (each token once) and 'value_actual' (as computed, with padding and
  finished beams), by arm.
  """
  generator = 2 * memory.num_weights(setup.model)
  numbers = {}
  for arm, pool in pools.items():
    problems = len(pool.rewards)
    once, computed = (2 * value_weights * int(count) / problems for count in pool.scored_tokens)
    numbers |= {
        f'flops/{arm}/generator': generator * float(pool.sampled_tokens.mean()),
        f'flops/{arm}/value_cached': once, f'flops/{arm}/value_actual': computed}
  return numbers


def write(
    setup: setup_lib.Setup, pools: Mapping[str, evaluation.Pool], quality: Mapping[str, float], *,
    value_weights: int, tokens: int,
) -> None:
  """Writes table.md, the figure with its CSV, and results.json.

  Args:
    setup: the run's setup.
    pools: from `evaluation.search_all`.
    quality: numbers of the value model on its validation problems.
    value_weights: number of its weights.
    tokens: number of tokens sampled for its training.
  """
  run, config = setup.run, setup.config
  numbers = evaluation.numbers_of(pools, config.budgets)
  forms = closed_forms(config)

  table = _table(config, numbers, forms)
  caption = (
      f'{setup.describe()}; seed {run.seed}; w = {config.width}, blocks of {config.block_tokens} '
      f'tokens. N is the number of samples, or of blocks at each depth of the search.')
  metrics.write_text_atomic(run.table_path, f'{table}\n\n{caption}\n')
  _figure(run, numbers)
  launch.write_results(run, {
      **{f'eval/{name}': value for name, value in numbers.items()},
      **{f'value/{name}': value for name, value in quality.items()},
      **{f'expected/{name}': value for name, value in forms.items()},
      **flops(setup, value_weights, pools), 'sampled_tokens': tokens})
  print(f'\n{table}\n\n{caption}\n\nwritten to {run.workdir}: results.json, table.md, '
        'metrics.jsonl, value/, figures/', flush=True)


def _table(config: Any, numbers: Mapping[str, float], forms: Mapping[str, float]) -> str:
  rows = [['one sample', '1', figures.percent(numbers, 'pass@1'),
           f'{numbers["pass@1_tokens"]:.0f}', *_expected(forms, 'pass@1')]]
  for method, title in _METHODS.items():
    for n in config.budgets:
      name = f'{method}@{n}'
      if name not in numbers:
        continue
      tokens = numbers.get(f'{name}_tokens')
      rows.append([title, n, figures.percent(numbers, name),
                   '' if tokens is None else f'{tokens:.0f}', *_expected(forms, name)])
  header = ['method', 'N', 'accuracy (%)', 'tokens per problem']
  return figures.markdown_table([*header, 'exact values (%)'] if forms else header, rows)


def _expected(forms: Mapping[str, float], name: str) -> list[str]:
  if not forms:
    return []
  return [f'{100 * forms[name]:.1f}' if name in forms else '-']


def _figure(run: launch.Run, numbers: Mapping[str, float]) -> None:
  """Plots accuracy against the tokens sampled per problem; writes a PNG and a CSV."""
  path, rows = run.workdir / 'figures' / 'accuracy.png', []
  with figures.figure(path, title=f'{run.setting}, seed {run.seed}', size=(6.4, 4.4)) as (axes,):
    axes.set(xlabel='tokens sampled per problem', ylabel='accuracy', xscale='log')
    for method, marker in zip(('mv', 'bon', 'wmv', 'vgs', 'random/vgs', 'exact/vgs'), 'os^Dv*'):
      points = [
          (numbers[f'{name}_tokens'], numbers[name], numbers[f'{name}_se'])
          for n in run.config.budgets if (name := f'{method}@{n}') in numbers]
      if not points:
        continue
      tokens, accuracy, error = zip(*points)
      axes.errorbar(tokens, accuracy, error, marker=marker, ms=5, label=_METHODS[method])
      rows += [(method, *point) for point in points]

    axes.axhline(numbers['pass@1'], color='0.6', ls=':', label='one sample')
    axes.legend(frameon=False, fontsize=8)
  metrics.write_csv_atomic(
      path.with_suffix('.csv'), ['method', 'tokens', 'accuracy', 'accuracy_se'], rows)
