"""Makes the tables, in Markdown and CSV, from results.json files.

  python -m experiments.make_tables [--runs=results] [--out=DIR] [--pages=README.md,docs]

Each experiment's table shows the mean and standard error over seeds, the provenance of every row,
and the published numbers with their addresses. The program writes DIR/<experiment>.md and
DIR/<experiment>.csv (by default in RUNS/tables) and prints the Markdown. --pages lists Markdown
files, or directories of them, whose blocks are filled from the same results.
"""

import functools
import itertools
import pathlib
from collections.abc import Sequence

from absl import flags

from jaxrl_llm.runs import launch
from jaxrl_llm.tables import readme, render
from jaxrl_llm.training import metrics

_RUNS = flags.DEFINE_string('runs', 'results', 'directory of results.json files')
_PAGES = flags.DEFINE_list(
    'pages', [], 'Markdown files, or directories of them, to fill from the runs')
_OUT = flags.DEFINE_string('out', '', 'directory of the tables; by default RUNS/tables')

# Rows of the speed table: name in the benchmark file, label, decimals.
_SPEED = (
    ('sft_step/seconds', 'SFT step, 8 x 256 tokens (s)', 2),
    ('sft_step/tokens_per_second', 'SFT, tokens/s', 0),
    ('a_star_po_step/seconds', 'A\\*-PO step, 16 x (32 + 64): sample, score, update (s)', 2),
    ('sample_batch_16/tokens_per_second', 'sampling 32 + 128, batch 16 (tokens/s)', 0),
    ('sample_batch_64/tokens_per_second', 'sampling 32 + 128, batch 64 (tokens/s)', 0),
)
_STUDIES = ('arithmetic', 'summarisation', 'dialogue')  # Arena studies shown on pages.
# Other blocks of pages: experiment, setting, how the table is made.
_BLOCKS = {
    'icl_hmm': ('icl_hmm', 'default', readme.icl_hmm),
    'icl_hmm smollm2': ('icl_hmm', 'checkpoint_smollm2', readme.icl_hmm_checkpoint),
    'icl_hmm smollm2 16': ('icl_hmm', 'checkpoint_smollm2_16', readme.icl_hmm_checkpoint),
    'icl_hmm mice': ('icl_hmm', 'mice', readme.icl_hmm_mice),
    'icl_hmm mice smollm2': ('icl_hmm', 'mice_smollm2', readme.icl_hmm_mice),
    'shoestring cora': ('shoestring', 'cora', functools.partial(readme.few_labels, title='Cora')),
    'shoestring citeseer': (
        'shoestring', 'citeseer', functools.partial(readme.few_labels, title='CiteSeer')),
    'faults': ('faults', 'default', readme.faults),
    'q_sharp': ('q_sharp', 'noisy_sum', readme.guided),
    'vgs': ('vgs', 'noisy_sum', readme.searches),
    'shoestring few shot': ('shoestring_few_shot', 'default', readme.few_shot),
}


def main() -> None:
  """Reads the results; renders, writes and prints the tables."""
  if not _RUNS.value:  # It would read everything below the working directory.
    raise ValueError("runs must name a directory, got '' (--runs)")
  settings = render.read_results(_RUNS.value)
  out = pathlib.Path(_OUT.value or pathlib.Path(_RUNS.value) / 'tables')
  if out.exists() and not out.is_dir():
    raise ValueError(f'out: not a directory: {str(out)!r} (--out)')
  out.mkdir(parents=True, exist_ok=True)

  written = []
  for experiment, group in itertools.groupby(settings, key=lambda setting: setting.experiment):
    group = list(group)
    text = render.markdown(experiment, group)
    metrics.write_text_atomic(out / f'{experiment}.md', text)
    metrics.write_text_atomic(out / f'{experiment}.csv', render.csv_text(group))
    written += [out / f'{experiment}.md', out / f'{experiment}.csv']
    print(text)

  if _PAGES.value:
    blocks = page_blocks(settings, _RUNS.value)
    for path in find_pages(_PAGES.value):
      try:
        text = path.read_text(encoding='utf-8')
      except UnicodeDecodeError as error:
        raise ValueError(f'{path} must be UTF-8 text (--pages): {error}') from error
      metrics.write_text_atomic(path, readme.fill(text, blocks))
      written.append(path)
  print('written: ' + ', '.join(map(str, written)))


def find_pages(names: Sequence[str]) -> list[pathlib.Path]:
  """Lists the given Markdown files, and those in the given directories."""
  pages = []
  for path in map(pathlib.Path, names):
    files = sorted(path.rglob('*.md')) if path.is_dir() else [path]
    if not files or not all(page.is_file() for page in files):
      raise ValueError(
          f'pages must name Markdown files or directories of them, got {path} (--pages)')
    pages += files
  return pages


def page_blocks(settings: list[render.Setting], runs: str) -> dict[str, str]:
  """Returns the content of every block that a page can have.

  Args:
    settings: all variants in `runs`.
    runs: results directory; the benchmark files are read from it.

  Returns:
    Markdown by block name.

  Raises:
    ValueError: the main job or the benchmark has no committed result.
  """
  by_name = {(setting.experiment, setting.name): setting for setting in settings}
  main_job = by_name.get(('a_star_po', 'arithmetic'))
  benches = sorted(pathlib.Path(runs, 'bench').glob('*.json'))
  if not main_job or not benches:
    raise ValueError(
        'runs must have a_star_po/arithmetic and bench/*.json to fill pages, got '
        f'{runs!r} (--runs)')
  blocks = {'main job': readme.main_job(main_job), 'speed': readme.speed(benches, _SPEED)}
  for study in _STUDIES:
    if ('arena', study) in by_name:
      blocks[f'arena {study}'] = readme.arena(by_name['arena', study])

  arms = [setting for setting in settings if setting.name.startswith('words_')]
  if arms:
    blocks['words'] = readme.words(arms)
  for block, (experiment, name, make) in _BLOCKS.items():
    if (experiment, name) in by_name:
      blocks[block] = make(by_name[experiment, name])
  return blocks


if __name__ == '__main__':
  launch.run_tool(main)
