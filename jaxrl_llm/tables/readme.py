"""Generates the blocks of README.md and docs/ that come from committed results.

The blocks thus stay in sync with the results. A block is the text between
`<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from jaxrl_llm.tables import render

_BLOCK = re.compile(r'<!-- begin ([^>\n]+) -->\n.*?<!-- end \1 -->', re.DOTALL)
_POLICIES = (
    ('reference', 'reference', 'reference'),
    ('reference at temperature 0.5', 'control', 'reference'),
    ('trained (A\\*-PO)', 'trained', 'trained'),
)
# Columns of the arena's tables: name, label, scale, digits.
_ARENA = (
    ('score', 'score, sampled', 1, 3), ('greedy_score', 'greedy', 1, 3),
    ('win_rate', 'win rate (%)', 100, 1), ('turn_1', 'turn 1', 1, 3), ('turn_2', 'turn 2', 1, 3),
    ('ask_rate', 'asks first (%)', 100, 1), ('kl_to_reference', 'KL (nats)', 1, 2),
    ('sampled_tokens', 'sampled tokens', 1, 0),
)


def fill(text: str, blocks: Mapping[str, str]) -> str:
  """Replaces the content of every block of a text.

  Args:
    text: Markdown.
    blocks: content by name; unused names are allowed.

  Returns:
    The text with its blocks filled.

  Raises:
    ValueError: if the text has a block that is not in `blocks`, or one without an end.
  """
  def content(match: re.Match) -> str:
    if match[1] not in blocks:
      raise ValueError(
          f'a block must be one of {", ".join(sorted(blocks))}, got {match[1]!r} '
          f'(<!-- begin {match[1]} -->)')
    return f'<!-- begin {match[1]} -->\n{blocks[match[1]]}\n<!-- end {match[1]} -->'

  filled = _BLOCK.sub(content, text)
  if len(re.findall('<!-- begin ', filled)) != len(_BLOCK.findall(filled)):
    raise ValueError('every <!-- begin NAME --> must be followed by its <!-- end NAME -->')
  return filled


def main_job(setting: render.Setting) -> str:
  """Makes the main job's table: mean ± standard error over seeds.

  Args:
    setting: runs of a_star_po / arithmetic.

  Returns:
    Markdown.
  """
  show = functools.partial(_show, setting)
  lines = [
      '| policy | pass@1 (%) | greedy (%) | KL to reference (nats) | tokens, stage 1 | '
      'tokens, stage 2 |',
      '|---|---|---|---|---|---|',
  ]
  for name, sampled, greedy in _POLICIES:
    trained = name.startswith('trained')
    cells = [
        show(f'eval/{sampled}/pass@1', 100, 1), show(f'eval/{greedy}/greedy_accuracy', 100, 1),
        show('eval/trained/kl_to_reference', 1, 3) if trained else '-',
        show('sampled_tokens/stage1', 1, 0) if trained else '-',
        show('sampled_tokens/stage2', 1, 0) if trained else '-',
    ]
    lines.append(f'| {name} | {" | ".join(cells)} |')

  seconds = setting.summary('wall_seconds')
  lines += ['', (
      f'Seeds {", ".join(map(str, setting.runs))}; mean ± standard error over seeds; '
      f'{seconds.mean:.0f} s a run on {setting.distinct("device")}, '
      f'jax {setting.distinct("versions/jax")}, commit {setting.distinct("commit")[:12]}.'
  )]
  return '\n'.join(lines)


def arena(setting: render.Setting) -> str:
  """Makes the table of an arena study: one row per algorithm, mean ± standard error over seeds.

  Args:
    setting: runs of arena / a task.

  Returns:
    Markdown.
  """
  names = dict.fromkeys(
      key.split('/')[1] for key in setting.quantities() if re.fullmatch(r'eval/\w+/score', key))
  columns = [column for column in _ARENA if any(
      setting.summary(f'eval/{name}/{column[0]}') for name in names)]

  lines = [f'| {" | ".join([setting.name, *(label for _, label, _, _ in columns)])} |',
           '|---' * (1 + len(columns)) + '|']

  for name in names:
    cells = [_show(setting, f'eval/{name}/{key}', scale, digits)
             for key, _, scale, digits in columns]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _show(setting: render.Setting, key: str, scale: float, digits: int) -> str:
  """Formats a cell: mean ± standard error, multiplied by `scale`, or a dash."""
  summary = setting.summary(key)
  if summary is None:
    return '-'
  error = summary.standard_error
  tail = '' if not error else f' ± {scale * error:,.{digits}f}'
  return f'{scale * summary.mean:,.{digits}f}{tail}'


def speed(files: Sequence[pathlib.Path], keys: Sequence[tuple[str, str, int]]) -> str:
  """Makes a table of benchmark numbers, one column per JSON file of experiments/bench/.

  Args:
    files: the JSON files.
    keys: (name in the file, label, decimals) of each row.

  Returns:
    Markdown.

  Raises:
    ValueError: if a number is missing from a file.
  """
  runs = [json.loads(pathlib.Path(file).read_bytes()) for file in files]
  names = [pathlib.Path(file).stem.replace('_', ' ') for file in files]
  lines = [f'| | {" | ".join(names)} |', '|---|' + '---|' * len(runs)]
  for key, label, digits in keys:
    if any(key not in run for run in runs):
      raise ValueError(f'{files} must all hold {key!r}')
    lines.append(f'| {label} | ' + ' | '.join(f'{run[key]:,.{digits}f}' for run in runs) + ' |')
  return '\n'.join(lines)
