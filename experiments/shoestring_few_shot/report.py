"""Report of the study of few-shot episodes: numbers, a table, curves and a figure."""

import contextlib

import numpy as np

from experiments.shoestring_few_shot.config import FewShot
from experiments.shoestring_few_shot.methods import METHODS
from jaxrl_llm.evaluation import intervals, statistics
from jaxrl_llm.runs import figures, launch
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics


def summarise(config: FewShot, outcomes: dict[int, dict[str, np.ndarray]]) -> dict[str, float]:
  """Numbers by flat name, as fractions: accuracies, and differences from plain prototypes."""
  numbers = {}
  for shots, arms in outcomes.items():
    for name, values in arms.items():
      prefix = f'eval/{name}/{config.way}way_{shots}shot'
      mean, error = statistics.mean_and_standard_error(values)
      numbers |= {f'{prefix}/accuracy': float(mean), f'{prefix}/accuracy_se': float(error)}
      if name != 'prototypes':
        gain = intervals.paired_interval(values, arms['prototypes'])
        numbers |= {f'{prefix}/difference': gain.mean, f'{prefix}/difference_low': gain.low,
                    f'{prefix}/difference_high': gain.high}
  return numbers


def table(config: FewShot, outcomes: dict[int, dict[str, np.ndarray]]) -> str:
  """Table of means with 95 % intervals over episodes."""
  def cell(values):
    mean, error = statistics.mean_and_standard_error(100 * values)
    return render.with_error(mean, 1.96 * error, '.2f')

  rows = [[text, *(cell(arms[name]) for arms in outcomes.values())]
          for name, text in METHODS.items()]
  header = ['accuracy (%, 95 % interval over episodes)',
            *(f'{config.way}-way {shots}-shot' for shots in outcomes)]
  return figures.markdown_table(header, rows)


def source(config: FewShot) -> str:
  """Description of the source of the features."""
  return f'features of {config.features_file}' if config.features_file else 'generated features'


def write_figure(run: launch.Run, outcomes: dict[int, dict[str, np.ndarray]]) -> None:
  """Plots accuracy by method, one panel per number of shots; writes the data as CSV."""
  path, rows = run.workdir / 'figures' / 'accuracy.png', []
  title = f'Episodes, {source(run.config)}: means with 95 % intervals'
  with figures.figure(path, len(outcomes), title=title) as panels:
    for panel, (shots, arms) in zip(panels, outcomes.items()):
      for i, name in enumerate(METHODS):
        mean, error = statistics.mean_and_standard_error(arms[name])
        panel.errorbar(100 * mean, -i, xerr=196 * error, fmt='o', color='#1b6ca8', capsize=3)
        rows.append((shots, name, float(mean), float(error)))

      panel.set(xlabel='accuracy (%)', title=f'{run.config.way}-way {shots}-shot')
      names = [name.replace(' with ', '\nwith ') for name in METHODS.values()]
      panel.set_yticks([-i for i in range(len(METHODS))],
                       names if panel is panels[0] else [''] * len(names))

    limits = [panel.get_xlim() for panel in panels]  # One common scale makes gaps comparable.
    for panel in panels:
      panel.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
  metrics.write_csv_atomic(
      path.with_suffix('.csv'), ['shots', 'method', 'accuracy', 'standard_error'], rows)


def write_metrics(run: launch.Run, outcomes: dict[int, dict[str, np.ndarray]]) -> None:
  """Writes the mean accuracy of each batch of episodes to metrics.jsonl."""
  size = run.config.batch_size
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for begin in range(0, run.config.episodes, size):
      writer.write(begin, {
          f'eval/{name}/{run.config.way}way_{shots}shot': values[begin : begin + size].mean()
          for shots, arms in outcomes.items() for name, values in arms.items()})
