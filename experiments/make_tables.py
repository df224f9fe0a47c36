"""Makes the tables: results.json files in, Markdown and CSV out.

  python -m experiments.make_tables [--runs=results] [--out=DIR]

For each experiment: mean and standard error over seeds, the provenance of every row, and the
published numbers with their addresses. Writes DIR/<experiment>.md and DIR/<experiment>.csv (by
default next to the runs, in RUNS/tables) and prints the Markdown.
"""

import itertools
import pathlib

from absl import flags

from experiments import launch
from jaxrl_llm.tables import render
from jaxrl_llm.training import metrics

_RUNS = flags.DEFINE_string('runs', 'results', 'folder of results.json files.')
_OUT = flags.DEFINE_string('out', '', 'where the tables go; by default RUNS/tables.')


def main() -> None:
  """Reads, renders, writes, prints."""
  settings = render.read_results(_RUNS.value)
  out = pathlib.Path(_OUT.value or pathlib.Path(_RUNS.value) / 'tables')
  if out.exists() and not out.is_dir():
    raise ValueError(f'out must be a folder, got the file {out} (--out)')
  out.mkdir(parents=True, exist_ok=True)
  written = []
  for experiment, group in itertools.groupby(settings, key=lambda setting: setting.experiment):
    group = list(group)
    text = render.markdown(experiment, group)
    metrics.write_text_atomic(out / f'{experiment}.md', text)
    metrics.write_text_atomic(out / f'{experiment}.csv', render.csv_text(group))
    written += [out / f'{experiment}.md', out / f'{experiment}.csv']
    print(text)
  print('written: ' + ', '.join(map(str, written)))


if __name__ == '__main__':
  launch.run_tool(main)
