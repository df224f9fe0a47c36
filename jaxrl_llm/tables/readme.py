"""The blocks of README.md that come from committed results, so that they stay true.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from jaxrl_llm.tables import render

_POLICIES = (
    ('reference', 'reference', 'reference'),
    ('reference at temperature 0.5', 'control', 'reference'),
    ('trained (A\\*-PO)', 'trained', 'trained'),
)


def fill(text: str, blocks: Mapping[str, str]) -> str:
  """Replaces the content of the named blocks.

  Args:
    text: of the README.
    blocks: content by name.

  Returns:
    The text with its blocks filled.

  Raises:
    ValueError: a block is not in the text.
  """
  for name, content in blocks.items():
    pattern = re.compile(rf'(<!-- begin {name} -->\n).*?(<!-- end {name} -->)', re.DOTALL)
    if not pattern.search(text):
      raise ValueError(f'README must have a block {name!r} (<!-- begin {name} -->), got none')
    text = pattern.sub(lambda match, new=content: f'{match[1]}{new}\n{match[2]}', text)
  return text


def main_job(setting: render.Setting) -> str:
  """The main job's table: mean ± standard error over seeds.

  Args:
    setting: a_star_po / arithmetic.

  Returns:
    Markdown.
  """
  def show(key: str, scale: float, digits: int) -> str:
    summary = setting.summary(key)
    if summary is None:
      return '-'
    error = summary.standard_error
    tail = '' if error is None else f' ± {scale * error:.{digits}f}'
    return f'{scale * summary.mean:,.{digits}f}{tail}'

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


def speed(files: Sequence[pathlib.Path], keys: Sequence[tuple[str, str, int]]) -> str:
  """A table of benchmark numbers, a column for each JSON file of experiments/bench.py.

  Args:
    files: the JSON files.
    keys: (name in the file, label, decimals) of each row.

  Returns:
    Markdown.

  Raises:
    ValueError: a file lacks a number.
  """
  runs = [json.loads(pathlib.Path(file).read_bytes()) for file in files]
  names = [pathlib.Path(file).stem.replace('_', ' ') for file in files]
  lines = [f'| | {" | ".join(names)} |', '|---|' + '---|' * len(runs)]
  for key, label, digits in keys:
    if any(key not in run for run in runs):
      raise ValueError(f'{files} must all hold {key!r}')
    lines.append(f'| {label} | ' + ' | '.join(f'{run[key]:,.{digits}f}' for run in runs) + ' |')
  return '\n'.join(lines)
