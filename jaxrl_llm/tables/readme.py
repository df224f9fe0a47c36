"""Generates the blocks of README.md and docs/ that come from committed results.

The blocks thus stay in sync with the results. A block is the text between
`<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

from jaxrl_llm.tables import digests, render

_BLOCK = re.compile(r'<!-- begin ([^>\n]+) -->\n.*?<!-- end \1 -->', re.DOTALL)
_POLICIES = (
    ('reference', 'reference', 'reference'),
    ('reference at temperature 0.5', 'control', 'reference'),
    ('trained (A\\*-PO)', 'trained', 'trained'),
)
# Columns of the study on a pretrained model: name, label, scale, digits.
_WORDS = (
    ('eval/{}/pass@1', 'pass@1 (%)', 100, 1), ('eval/{}/greedy_accuracy', 'greedy (%)', 100, 1),
    ('eval/{}/kl_to_reference', 'KL (nats)', 1, 2), ('eval/{}/length', 'length (tokens)', 1, 1),
    ('sampled_tokens', 'sampled tokens', 1, 0), ('wall_seconds', 'minutes', 1 / 60, 0),
    ('memory/host_peak_bytes', 'peak memory (GB)', 1e-9, 1),
)
# Columns of the arena's tables: name, label, scale, digits.
_ARENA = (
    ('score', 'score, sampled', 1, 3), ('greedy_score', 'greedy', 1, 3),
    ('win_rate', 'win rate (%)', 100, 1), ('turn_1', 'turn 1', 1, 3), ('turn_2', 'turn 2', 1, 3),
    ('ask_rate', 'asks first (%)', 100, 1), ('kl_to_reference', 'KL (nats)', 1, 2),
    ('sampled_tokens', 'sampled tokens', 1, 0),
)

# Rows and columns of the campaign of faults: label, name in results.json.
_FAULTS = (
    ('kill -9', 'kill'), ('SIGINT, SIGTERM, SIGHUP', 'signal'), ('damaged files', 'damage'),
    ('full disk', 'disk'), ('wrong commands', 'invocation'), ('all', 'all'),
)
_OUTCOMES = (
    ('equal', 'equal'), ('equal, with a notice', 'equal_with_a_notice'), ('one line', 'one_line'),
    ('unclear', 'unclear'), ('wrong', 'wrong'), ('traceback', 'traceback'), ('hung', 'hung'),
    ('accepted', 'accepted'),
)

# Rows and columns of the other tables: label, and the parts of a key in results.json.
_HMM_METHODS = (
    ('in context', 'icl'), ('filter (knows the HMM)', 'filter'),
    ('bigrams of the context', 'bigram'), ('Baum-Welch, best of 5', 'baum_welch'),
    ('gap to the filter', 'gap'),
)
_HMM_READERS = (
    ('filter (knows the HMM)', 'eval/filter'), ('Viterbi (knows the HMM)', 'eval/viterbi'),
    ('the model, numbers', 'eval/123'), ('the model, random tokens', 'eval/random'),
    ('the model, letters', 'eval/abc'), ('bigrams of the context', 'eval/ngram2'),
    ('Baum-Welch, recorded', 'recorded/baum_welch'),
    *((f'{label}, letters, recorded', f'recorded/{name}') for label, name in (
        ('Qwen2.5-0.5B', 'qwen2.5_0.5b'), ('Llama-3.2-1B', 'llama3.2_1b'),
        ('Qwen2.5-1.5B', 'qwen2.5_1.5b'), ('Qwen2.5-3B', 'qwen2.5_3b'),
        ('Llama-3.2-3B', 'llama3.2_3b'), ('Qwen2.5-7B', 'qwen2.5_7b'),
        ('Llama-3.1-8B', 'llama3.1_8b'))),
)
_MICE_METHODS = (
    ('bias only (chance: 50)', 'bias'), ('counts in the same window', 'context_ngram3'),
    ('GLM', 'glm'), ('GLM, a weight for each contrast', 'glm_levels'),
    ('GLM-HMM, 3 states', 'glm_hmm3'), ('in context: choices', 'icl_choice'),
    ('in context: contrasts, choices', 'icl_stim_choice'),
    ('in context, layout of the released code (the answer can be read)', 'icl_shift'),
    ('a language model: choices', 'checkpoint_choice'),
    ('a language model: choices, rewards', 'checkpoint_choice_reward'),
    ('a language model: contrasts, choices', 'checkpoint_stim_choice'),
    ('a language model: contrasts, choices, rewards', 'checkpoint_stim_choice_reward'),
)
_FEW_LABELS = (
    ('label propagation', 'lp/softmax/{}/accuracy'),
    ('GCN', 'gcn/softmax/{}/accuracy'),
    ('GCN + cos, prototypes from training labels', 'gcn/cos/{}/accuracy'),
    ('IGCN', 'igcn/softmax/{}/accuracy'),
    ('IGCN + cos, prototypes from training labels', 'igcn/cos/{}/accuracy'),
    ('GCN (λ = 0), prototypes from *test* labels, as in the released code',
     'gcn/softmax/{}/leaky_accuracy'),
    ('IGCN + cos, prototypes from *test* labels', 'igcn/cos/{}/leaky_accuracy'),
)
_FEW_SHOT = (
    ('prototypes', 'prototypes'), ('label propagation', 'lp'), ('refined prototypes', 'refined'),
    ('prototypes of filtered features', 'filtered'),
    ('graph network with the metric head, softmax', 'gcn_softmax'),
    ('graph network with the metric head, prototypes', 'gcn_prototypes'),
)


# Columns of guided policies, and rows of searches: key, label, scale, digits.
_GUIDED = (
    ('accuracy', 'accuracy (%)', 100, 1), ('maj@16', 'maj@16 (%)', 100, 1),
    ('kl', 'KL to reference (nats)', 1, 3))
_GUIDANCE = (('q_sharp', 'Q#'), ('cd', 'controlled decoding'), ('fudge', 'FUDGE'))
_SEARCHES = (
    ('mv', 'majority vote of N samples'), ('bon', 'best of N samples by value'),
    ('wmv', 'weighted vote of N samples'), ('vgs', 'search by value, weighted vote'),
    ('dvts/vgs', 'the same in several trees'), ('beam', 'search by value, mean response'),
    ('random/vgs', 'search by random choice, vote'),
    ('random/beam', 'search by random choice, mean response'),
    ('exact/vgs', 'search by exact value, vote'))


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


def faults(setting: render.Setting) -> str:
  """Makes the table of a campaign of faults: outcomes by kind of case.

  Args:
    setting: a run of faults / default.

  Returns:
    Markdown.
  """
  columns = ['tried', *(name for name, _ in _OUTCOMES)]
  lines = [f'| {" | ".join(["", *columns])} |', '|---' * (1 + len(columns)) + '|']
  for label, kind in _FAULTS:
    counts = [_show(setting, f'cases/{kind}/{key}', 1, 0) for key in (
        'tried', *(key for _, key in _OUTCOMES))]
    lines.append(f'| {label} | {" | ".join(counts)} |')

  lines += ['', (
      f'Seed {", ".join(map(str, setting.runs))}; {setting.distinct("processor/model")}, '
      f'jax {setting.distinct("versions/jax")}, commit {setting.distinct("commit")[:12]}.')]
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


def icl_hmm(setting: render.Setting) -> str:
  """Makes the table of HMMs learnt in context: accuracy by number of symbols seen.

  Args:
    setting: runs of icl_hmm / default.

  Returns:
    Markdown.
  """
  prefix = 'eval/icl/accuracy/T'
  lengths = [key.removeprefix(prefix) for key in setting.quantities() if key.startswith(prefix)]
  # The gap of each run, so that its error over seeds is that of paired differences.
  runs = {seed: run | {
      f'eval/gap/accuracy/T{length}':
          run[f'eval/filter/accuracy/T{length}'] - run[f'eval/icl/accuracy/T{length}']
      for length in lengths} for seed, run in setting.runs.items()}

  rows = [(length, f'eval/{{}}/accuracy/T{length}') for length in lengths]
  return _grid(setting._replace(runs=runs), 'T', _HMM_METHODS, rows, scale=1, digits=3)


def icl_hmm_checkpoint(setting: render.Setting) -> str:
  """Makes the table of a language model on published HMMs: one row per method.

  Args:
    setting: one run of icl_hmm / checkpoint...; errors are over its trajectories.

  Returns:
    Markdown: accuracy by symbols seen, the distance to the emissions of the true state and ε (the
    accuracy of Viterbi minus the method's) at the last length, and the first length from which on ε
    is at most 0.05.
  """
  (run,) = setting.runs.values()
  prefix = 'eval/filter/accuracy/T'
  lengths = [key.removeprefix(prefix) for key in run if key.startswith(prefix)]
  shown, last = lengths[::2], lengths[-1]
  shown += [last] * (last not in shown)

  def cell(key: str, scale: float, form: str) -> str:
    if key not in run:
      return '-'
    name, separator, length = key.partition('/T')
    error = run.get(f'{name}_se{separator}{length}')
    return render.with_error(scale * run[key], None if error is None else scale * error, form)

  lines = [f'| | {" | ".join(f"T = {length}" for length in shown)} | H | ε | T(0.05) |',
           '|---' * (len(shown) + 4) + '|']
  for label, name in _HMM_READERS:
    if f'{name}/accuracy/T{last}' in run:
      cells = [cell(f'{name}/accuracy/T{length}', 100, '.1f') for length in shown]
      cells += [cell(f'{name}/hellinger/T{last}', 1, '.3f'), cell(f'{name}/final_gap', 1, '.3f'),
                cell(f'{name}/reached_0.05', 1, '.0f')]
      lines.append(f'| {label} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def icl_hmm_mice(setting: render.Setting) -> str:
  """Makes the table of mice's choices: accuracy by method and real animal, and their mean.

  Args:
    setting: runs of icl_hmm / mice.

  Returns:
    Markdown.
  """
  animals = dict.fromkeys(key.split('/')[1] for key in setting.quantities()
                          if re.fullmatch(r'mice/[^/]+/glm/accuracy', key))
  columns = [(name, f'mice/{name}') for name in animals if not name.startswith('simulated_')]
  rows = [(label, f'{{}}/{method}/accuracy') for label, method in _MICE_METHODS
          if setting.summary(f'mean/{method}/accuracy')]
  return _grid(setting, 'accuracy (%)', [*columns, ('mean', 'mean')], rows, scale=100, digits=1)


def few_labels(setting: render.Setting, title: str) -> str:
  """Makes the table of a graph with few labels: accuracy by method and labels per class.

  Args:
    setting: runs of shoestring / a graph.
    title: name of the graph.

  Returns:
    Markdown.
  """
  columns = [(f'{count} per class', f'n{count}') for count in (1, 2, 5, 20)]
  rows = [(label, f'eval/{pattern}') for label, pattern in _FEW_LABELS]
  return _grid(setting, title, columns, rows, scale=100, digits=1)


def few_shot(setting: render.Setting) -> str:
  """Makes the table of few-shot episodes: accuracy by method and shots.

  Args:
    setting: runs of shoestring_few_shot / default.

  Returns:
    Markdown.
  """
  columns = [('1 shot', '5way_1shot'), ('5 shots', '5way_5shot')]
  rows = [(label, f'eval/{method}/{{}}/accuracy') for label, method in _FEW_SHOT]
  return _grid(setting, 'accuracy (%)', columns, rows, scale=100, digits=1)


def guided(setting: render.Setting) -> str:
  """Makes the table of guided policies: accuracy, vote and KL by rule and η.

  Args:
    setting: runs of q_sharp.

  Returns:
    Markdown; η from large to small.
  """
  lines = [f'| {" | ".join(["policy", *(label for _, label, _, _ in _GUIDED)])} | exact values: '
           'accuracy, KL |', '|---' * (2 + len(_GUIDED)) + '|']

  def add(name: str, arm: str, expected: str) -> None:
    cells = [_show(setting, f'eval/{arm}/{key}', scale, digits)
             for key, _, scale, digits in _GUIDED]
    lines.append(f'| {name} | {" | ".join(cells)} | {expected} |')

  add('reference', 'reference', '-')
  add('reference at temperature 0.5', 'control', '-')
  etas = {float(match[1]) for key in setting.quantities()
          if (match := re.fullmatch(r'eval/q_sharp/eta_([0-9.e-]+)/accuracy', key))}
  for rule, label in _GUIDANCE:
    for eta in sorted(etas, reverse=True):
      if setting.summary(f'eval/{rule}/eta_{eta:g}/accuracy') is None:
        continue
      exact = [_show(setting, f'expected/eta_{eta:g}/{key}', scale, digits)
               for key, scale, digits in (('accuracy', 100, 1), ('kl', 1, 3))]
      add(f'{label}, η = {eta:g}', f'{rule}/eta_{eta:g}',
          ', '.join(exact) if rule == 'q_sharp' else '-')
  return '\n'.join([*lines, '', _made(setting)])


def searches(setting: render.Setting) -> str:
  """Makes the table of searches: accuracy by method and budget.

  Args:
    setting: runs of vgs.

  Returns:
    Markdown.
  """
  budgets = sorted({int(match[1]) for key in setting.quantities()
                    if (match := re.fullmatch(r'eval/mv@([0-9]+)', key))})
  rows = [(label, f'eval/{method}@{{}}') for method, label in _SEARCHES
          if setting.summary(f'eval/{method}@{budgets[-1]}')]
  table = _grid(
      setting, 'accuracy (%)', [(f'N = {n}', str(n)) for n in budgets], rows, scale=100, digits=1)
  one = _show(setting, 'eval/pass@1', 100, 1)
  return f'{table}\n\nOne sample: {one} %. {_made(setting)}'


def _made(setting: render.Setting) -> str:
  """Seeds and processor of a table."""
  seeds = ', '.join(map(str, sorted(setting.runs)))
  return (f'Seeds {seeds}; mean ± standard error over seeds; '
          f'{setting.distinct("processor/model")}.')


def _grid(
    setting: render.Setting, corner: str, columns: Sequence[tuple[str, str]],
    rows: Sequence[tuple[str, str]], *, scale: float, digits: int,
) -> str:
  """Table of one quantity; a row's key has a {} for the name of the column."""
  lines = [f'| {" | ".join([corner, *(label for label, _ in columns)])} |',
           '|---' * (1 + len(columns)) + '|']
  for label, pattern in rows:
    cells = [_show(setting, pattern.format(name), scale, digits) for _, name in columns]
    lines.append(f'| {label} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _show(setting: render.Setting, key: str, scale: float, digits: int) -> str:
  """Formats a cell: mean ± standard error, multiplied by `scale`, or a dash."""
  summary = setting.summary(key)
  if summary is None:
    return '-'
  error = scale * summary.standard_error if summary.standard_error else None
  return render.with_error(scale * summary.mean, error, f',.{digits}f')


def words(settings: Sequence[render.Setting]) -> str:
  """Makes the table of the algorithms on word problems.

  Args:
    settings: the arms (`words_...`) of a_star_po and online_rl; all have the same reference.

  Returns:
    Markdown.
  """
  lines = [f'| {" | ".join(["", *(label for _, label, _, _ in _WORDS)])} |',
           '|---' * (1 + len(_WORDS)) + '|']

  def add(name: str, setting: render.Setting, policy: str, *, trained: bool) -> None:
    cells = [
        _show(setting, key.format(policy), scale, digits) if trained or '{}' in key else '-'
        for key, _, scale, digits in _WORDS]
    lines.append(f'| {name} | {" | ".join(cells)} |')

  add('reference', settings[0], 'reference', trained=False)
  add('reference at temperature 0.5', settings[0], 'control', trained=False)
  for setting in settings:
    name = setting.name.removeprefix('words_')
    if setting.experiment == 'a_star_po':
      name = f'A\\*-PO, N = {name.removeprefix("n")}'
    add(name, setting, 'trained', trained=True)

  seeds = sorted({seed for setting in settings for seed in setting.runs})
  machines = dict.fromkeys(setting.distinct('processor/model') for setting in settings)
  lines += ['', f'Seeds {", ".join(map(str, seeds))}; {"; ".join(machines)}.']
  return '\n'.join(lines)


def speed(files: Sequence[pathlib.Path], keys: Sequence[tuple[str, str, int]]) -> str:
  """Makes a table of benchmark numbers, one column per JSON file of experiments/bench/.

  Args:
    files: the JSON files.
    keys: (name in the file, label, decimals) of each row.

  Returns:
    Markdown.

  Raises:
    ValueError: if a file is not a JSON object, or a number is missing from it.
  """
  runs = [_read_numbers(pathlib.Path(file)) for file in files]
  names = [pathlib.Path(file).stem.replace('_', ' ') for file in files]
  lines = [f'| | {" | ".join(names)} |', '|---|' + '---|' * len(runs)]
  for key, label, digits in keys:
    for file, run in zip(files, runs):
      if not isinstance(run.get(key), (int, float)):
        raise ValueError(f'{file} must have a number {key!r}, got {run.get(key)!r}')
    lines.append(f'| {label} | ' + ' | '.join(f'{run[key]:,.{digits}f}' for run in runs) + ' |')
  return '\n'.join(lines)


def _read_numbers(file: pathlib.Path) -> dict[str, float]:
  try:
    numbers = json.loads(file.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{file} is not JSON: {error}') from error
  if not isinstance(numbers, dict):
    raise ValueError(f'{file} must hold one flat object, got a {type(numbers).__name__}')
  if not digests.is_intact(numbers):
    raise ValueError(f'{file} is damaged: its content does not match its digest (sha256)')
  return numbers
