"""Tables from results.json files: mean and standard error over seeds, next to published numbers.

Uses only the standard library, so that tables can be made without installing anything else.
"""

import csv
import io
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.tables import digests, reference

REQUIRED = ('experiment', 'setting', 'seed', 'commit', 'device', 'wall_seconds', 'sampled_tokens')

# Numbers shown in the Markdown table if a run has them, by experiment (regular expressions); the
# CSV has all numbers.
_COMMON = (
    'eval/reference/pass@1', 'eval/trained/pass@1',
    'eval/reference/greedy_accuracy', 'eval/trained/greedy_accuracy',
    'eval/trained/kl_to_reference', 'eval/trained/tokens_to_pass@1_0.9',
    'sampled_tokens/stage1', 'sampled_tokens/stage2', 'sampled_tokens', 'wall_seconds',
)
HEADLINES = {
    'arena': (r'eval/\w+/score', r'eval/\w+/kl_to_reference', 'wall_seconds'),
    'icl_hmm': (r'eval/\w+/accuracy/T\d+', r'published/\w+/(accuracy|hellinger)_mae',
                r'mean/\w+/accuracy', 'wall_seconds'),
    'rebel_games': ('eval/bound', r'eval/\w+/(average|last)_exploitability', 'wall_seconds'),
    'rebel_gaussian': (r'eval/\w+/(queries_to_goal|reached|final_fraction)', 'wall_seconds'),
    'shoestring': (r'eval/\w+/(softmax|cos)/(n\d+|public(/first_layer_decay)?)/accuracy',
                   r'eval/\w+/cos/n\d+/leaky_accuracy', 'wall_seconds'),
    'shoestring_few_shot': (r'eval/\w+/\w+/accuracy', 'wall_seconds'),
}
_MOST_COLUMNS = 12  # Maximum with one row per setting; a wider table is transposed.

_NOT_RECORDED = 'processor not recorded'
_NOT_MEASURED = ('seed', 'processor/threads')


class Summary(NamedTuple):
  """One number over the seeds of a setting.

  Attributes:
    mean: mean over the seeds that have the number.
    standard_error: sample standard deviation / √seeds; None for one seed.
    count: number of seeds that have the number.
  """

  mean: float
  standard_error: float | None
  count: int


class Setting(NamedTuple):
  """All runs of one setting.

  Attributes:
    experiment: name of the binary.
    name: name of the setting.
    runs: contents of results.json by seed, in ascending order.
  """

  experiment: str
  name: str
  runs: dict[int, dict[str, Any]]

  def quantities(self) -> list[str]:
    """Returns the names of the numbers in any run, in order of first appearance."""
    names = dict.fromkeys(name for run in self.runs.values() for name in run)
    return [
        name for name in names
        if name not in _NOT_MEASURED
        and all(_number(run[name]) is not None for run in self.runs.values() if name in run)
    ]

  def summary(self, key: str) -> Summary | None:
    """Returns mean and standard error of a number; None if no run has it.

    A single run that aggregates several (parallel seeds, splits, episodes, animals) records the
    error itself, under one of `_error_names`.
    """
    values = [_number(run[key]) for run in self.runs.values() if key in run]
    values = [value for value in values if value is not None]
    if not values:
      return None

    error = None
    if len(self.runs) == 1:
      (run,) = self.runs.values()
      error = next((_number(run[name]) for name in _error_names(key) if name in run), None)
    elif len(values) > 1 and all(map(math.isfinite, values)):
      # evaluation.statistics needs NumPy, which tables must not.
      error = statistics.stdev(values) / math.sqrt(len(values))

    return Summary(statistics.fmean(values), error, len(values))

  def distinct(self, key: str) -> str:
    """Returns the distinct values of a string over the runs."""
    return ', '.join(dict.fromkeys(str(run.get(key, '?')) for run in self.runs.values()))


def read_results(folder: str | pathlib.Path) -> list[Setting]:
  """Reads every results.json below a directory.

  Args:
    folder: `results`, laid out as <experiment>/<setting>/seed<N>/results.json, or a directory of
      workdirs. The file identifies its run; a directory named seed<N> must agree with it.

  Returns:
    Settings sorted by name, with seeds in ascending order.

  Raises:
    FileNotFoundError: if the directory does not exist or has no results.json.
    ValueError: one line, if a file is malformed, or two hold the same experiment, setting and
      seed.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f'not a directory: {str(folder)!r} (--runs)')

  paths: dict[tuple[str, str, int], pathlib.Path] = {}
  settings: dict[tuple[str, str], Setting] = {}
  for path in sorted(folder.rglob('results.json')):
    run = _read_one(path)
    identity = run['experiment'], run['setting'], run['seed']
    if identity in paths:
      name = ' / '.join(map(str, identity))
      raise ValueError(f'{path} and {paths[identity]} hold the same run, {name}')
    paths[identity] = path
    setting = settings.setdefault(identity[:2], Setting(*identity[:2], {}))
    _check_kinds(path, run, setting)
    setting.runs[run['seed']] = run

  if not settings:
    raise FileNotFoundError(f'no results.json below {folder} (--runs)')
  return [
      setting._replace(runs=dict(sorted(setting.runs.items())))
      for _, setting in sorted(settings.items())
  ]


def headlines(experiment: str, measured: Sequence[str]) -> list[str]:
  """Selects the numbers shown in an experiment's tables.

  Args:
    experiment: name of the binary.
    measured: names of all numbers (`Setting.quantities`).

  Returns:
    Names, in the order of `HEADLINES`; all of them if no headline was measured.
  """
  keys = [key for name in HEADLINES.get(experiment, _COMMON) for key in measured
          if re.fullmatch(name, key)]
  return list(measured) if set(keys) <= set(REQUIRED) else keys


def markdown(experiment: str, settings: Sequence[Setting]) -> str:
  """Makes the tables of one experiment: measured, provenance, published.

  Args:
    experiment: name of the binary.
    settings: settings of that experiment.

  Returns:
    Markdown, ending in a newline.
  """
  measured = list(dict.fromkeys(key for setting in settings for key in setting.quantities()))
  keys = headlines(experiment, measured)

  rows = [['setting', 'seeds', *keys]]
  for setting in settings:
    rows.append([
        setting.name, str(len(setting.runs)), *(_cell(setting, key) for key in keys)])
  if len(keys) > _MOST_COLUMNS:
    rows = [list(row) for row in zip(*rows)]

  lines = [f'# {experiment}', '', '## Measured', '',
           'Mean ± standard error over seeds. One seed alone has no error, or that over what it '
           'took several of: seeds side by side, splits, episodes, animals.',
           '',
           *_table(rows[0], rows[1:])]
  lines += ['', '## Where the numbers come from', '', *_table(
      ['setting', 'seeds', 'commit', 'jax', 'device'],
      [[setting.name, ', '.join(map(str, setting.runs)), setting.distinct('commit'),
        setting.distinct('versions/jax'), setting.distinct('device')] for setting in settings])]
  lines += _processor_note(settings)

  cells = reference.published(experiment)
  if cells:
    lines += ['', '## Published', '', *_published_table(cells), '']
    lines += [f'Source: {source}.' for source in _sources(cells)]
    if experiment in reference.SCALE_NOTES:
      lines += ['', reference.SCALE_NOTES[experiment]]

  return '\n'.join(lines) + '\n'


def csv_text(settings: Iterable[Setting]) -> str:
  """Writes all numbers of all settings as CSV, with published counterparts if there are any.

  Args:
    settings: settings of one or several experiments.

  Returns:
    CSV with a header line.
  """
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  writer.writerow(['experiment', 'setting', 'quantity', 'mean', 'standard_error', 'seeds',
                   'published', 'published_unit', 'address', 'note'])

  for setting in settings:
    for key in setting.quantities():
      mean, error, count = setting.summary(key)
      cell = reference.counterpart(setting.experiment, setting.name, key)
      note = '' if cell else reference.SCALE_NOTES.get(setting.experiment, '')
      writer.writerow([
          setting.experiment, setting.name, key, repr(mean), '' if error is None else repr(error),
          count, cell.value if cell else '', cell.unit if cell else '',
          cell.address if cell else '', note])
  return buffer.getvalue()


def _read_one(path: pathlib.Path) -> dict[str, Any]:
  try:
    run = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON: {error}') from error
  if not isinstance(run, dict):
    raise ValueError(f'{path} must hold one flat object, got a {type(run).__name__}')

  for name in REQUIRED:
    if name not in run:
      raise ValueError(f'{path} must have {name}, got {", ".join(run) or "nothing"}')
  for name, value in run.items():
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
      raise ValueError(f'{path}: {name} must be a number or a string, got {value!r}')
    # JSON has no others, and they could not be averaged. NaN is written as text.
    if not isinstance(value, str) and not abs(value) <= sys.float_info.max:
      raise ValueError(f'{path}: {name} must be a finite number, got {str(value)[:30]}')

  if not digests.is_intact(run):
    problem = ('its content does not match its digest (sha256)' if 'sha256' in run else
               'it has no digest (sha256)')
    raise ValueError(f'{path} is damaged: {problem}')
  _check_identity(path, run)
  return run


def _check_identity(path: pathlib.Path, run: Mapping[str, Any]) -> None:
  """Raises ValueError unless the required fields have their types and agree with the path."""
  for name in ('experiment', 'setting', 'commit', 'device'):
    if not isinstance(run[name], str):
      raise ValueError(f'{path}: {name} must be a string, got {run[name]!r}')
  for name in ('wall_seconds', 'sampled_tokens'):
    if isinstance(run[name], str):
      raise ValueError(f'{path}: {name} must be a number, got {run[name]!r}')
  if not run['experiment'].isidentifier():  # It names the files of the tables.
    raise ValueError(f'{path}: experiment must be the name of a program, got {run["experiment"]!r}')

  if not isinstance(run['seed'], int):
    raise ValueError(f'{path}: seed must be an integer, got {run["seed"]!r}')
  named = re.fullmatch(r'seed(\d+)', path.parent.name)
  if named and int(named[1]) != run['seed']:
    raise ValueError(f'{path}: seed must be {named[1]}, as its directory says, got {run["seed"]}')


def _check_kinds(path: pathlib.Path, run: Mapping[str, Any], setting: Setting) -> None:
  """Raises ValueError if a name is a number in one run of a setting and text in another."""
  for other in setting.runs.values():
    for name in run.keys() & other.keys():
      if (_number(run[name]) is None) != (_number(other[name]) is None):
        raise ValueError(
            f'{path}: {name} must be a number in all seeds of {setting.experiment}/{setting.name} '
            f'or in none, got {run[name]!r} here and {other[name]!r} in seed {other["seed"]}')


def _error_names(key: str) -> list[str]:
  """Returns the names under which a run may hold a number's standard error.

  `_se`, in front of a length if there is one, and those of results committed by earlier versions.
  """
  names = [f'{key}_se', f'{key}_standard_error']
  if re.search(r'/T\d+$', key):  # By length: eval/icl/accuracy/T64, eval/icl/accuracy_se/T64.
    names.append('_se/'.join(key.rsplit('/', 1)))
  if re.search(r'(^|[/_])accuracy$', key):  # .../leaky_accuracy, .../leaky_standard_error.
    names.append(key.removesuffix('accuracy') + 'standard_error')
  return names


def _number(value: Any) -> float | None:
  if value is None:
    return None
  if isinstance(value, str):  # JSON has no non-finite numbers; they are written as strings.
    return float(value) if value in ('nan', 'inf', '-inf') else None
  return float(value)


def _cell(setting: Setting, key: str) -> str:
  summary = setting.summary(key)
  if summary is None:
    return '–'
  text = format_number(summary.mean, summary.standard_error)
  if summary.count < len(setting.runs):
    text += f' ({summary.count} seeds)'
  cell = reference.counterpart(setting.experiment, setting.name, key)
  if cell:
    text += f' [published: {cell.value / cell.factor:g}]'
  return text


def with_error(mean: float, standard_error: float | None, form: str) -> str:
  """Formats a mean, and ± its standard error if there is one, both by `form`, such as '.3f'."""
  text = f'{mean:{form}}'
  return text if standard_error is None else f'{text} ± {standard_error:{form}}'


def format_number(mean: float, standard_error: float | None = None) -> str:
  """Formats a number: large ones as integers with commas, others with about four digits.

  Args:
    mean: the number.
    standard_error: shown after ±, if given.

  Returns:
    Text such as '0.9531 ± 0.0042' or '1,204,000'.
  """
  if not math.isfinite(mean):
    return str(mean)

  if abs(mean) >= 1000:
    return with_error(mean, standard_error, ',.0f')

  text = f'{mean:.4f}' if abs(mean) < 10 else f'{mean:.1f}'
  if mean == int(mean) and not standard_error:
    text = str(int(mean))
  if standard_error is None:
    return text
  return f'{text} ± {standard_error:.{len(text.partition(".")[2])}f}'


def _processor_note(settings: Sequence[Setting]) -> list[str]:
  """Returns lines that list the processors, if CPU runs used different ones.

  Results without a recorded processor are listed, but do not count as a difference by themselves.
  """
  runs: dict[str, dict[str, list[str]]] = {}
  for setting in settings:
    for seed, run in setting.runs.items():
      if 'cpu' in str(run['device']).lower():
        runs.setdefault(_processor(run), {}).setdefault(setting.name, []).append(str(seed))
  if len(set(runs) - {_NOT_RECORDED}) < 2:
    return []

  lines = ['', 'These runs come from different processors, on which the same command and seed need '
           'not give the same numbers:', '']
  for name, seeds in runs.items():
    where = '; '.join(f'{setting} (seeds {", ".join(ids)})' for setting, ids in seeds.items())
    lines.append(f'- {name}: {where}')
  return lines


def _processor(run: Mapping[str, Any]) -> str:
  """Describes a run's processor, threads and vector extensions, which determine rounding."""
  if 'processor/model' not in run:
    return _NOT_RECORDED
  parts = [f'{run[key]}{unit}' for key, unit in (
      ('processor/threads', ' threads'), ('processor/vector_extensions', '')) if key in run]
  return f'{run["processor/model"]} ({"; ".join(parts)})'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  lines = ['| ' + ' | '.join(header) + ' |', '|' + '---|' * len(header)]
  return lines + [
      '| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows
  ]


def _published_table(cells: Sequence[reference.Published]) -> list[str]:
  rows: dict[str, dict[str, reference.Published]] = {}
  for cell in cells:
    rows.setdefault(cell.row, {})[cell.column] = cell
  # The fullest row has the columns in their published order; a row may lack some.
  fullest = max(rows.values(), key=len)
  units = {cell.column: cell.unit for cell in (*fullest.values(), *cells)}
  return _table(
      ['row', *(f'{column} ({unit})' for column, unit in units.items())],
      [[name, *(_printed(row.get(column)) for column in units)] for name, row in rows.items()])


def _printed(cell: reference.Published | None) -> str:
  return '–' if cell is None else f'{cell.value:.{cell.decimals}f}'


def _sources(cells: Sequence[reference.Published]) -> list[str]:
  return list(dict.fromkeys(
      cell.address.removesuffix(f', row {cell.row}, column {cell.column}') for cell in cells))
