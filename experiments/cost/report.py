"""Tables and figure of the cost study, and its verdict on the published columns."""

import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.cost import model as cost_model
from jaxrl_llm.runs import figures
from jaxrl_llm.tables import reference

_GIGA, _PETA = 1e9, 1e15
_OURS = 'a_star_po'  # Baseline of the comparisons.
_FLOPS = {
    'sample': 'sample', 'reference': 'reference', 'old': 'old policy', 'critic': 'critic',
    'update': 'update', 'stage1': 'stage 1, spread',
}
_COLOURS = ('#1b6ca8', '#8d6a9f', '#e0a458', '#d1495b', '#2e8b57', '#a9a9a9')


class Costs:
  """Flat numbers of a study, by size and algorithm.

  Attributes:
    sizes: model sizes, in the study's order.
    algorithms: algorithm names, in the study's order.
  """

  def __init__(self, study: cost_model.Study, numbers: Mapping[str, Any]):
    self._study, self._numbers = study, numbers
    measured = lambda size, name: f'{size}/{name}/parameters' in numbers
    self.sizes = [s for s in study.models if any(measured(s, name) for name in study.recipes)]
    self.algorithms = [
        name for name in study.recipes if all(measured(size, name) for size in self.sizes)]

  def __call__(self, size: str, name: str, quantity: str) -> float:
    """Returns one number."""
    return self._numbers[f'{size}/{name}/{quantity}']

  def resident(self, size: str, name: str) -> float:
    """Parameters and optimizer of all trained networks, bytes per device."""
    parts = ('policy', 'critic', 'optimizer')
    return sum(self(size, name, f'bytes/{p}') for p in parts) / self._study.workload.devices

  def total(self, size: str, name: str, layout: str) -> float:
    """All live memory in an optimizer step, bytes per device."""
    return self(size, name, f'bytes_per_device/{layout}/total')

  def flops(self, size: str, name: str, *, stage1: bool = False) -> float:
    """Operations of an iteration."""
    return self(size, name, 'flops/total') + stage1 * self(size, name, 'flops/stage1')

  def published(self, size: str, name: str, column: str) -> float | None:
    """Cell of the published table, or None if there is none."""
    method = self._study.recipes[name].published
    row = f'Qwen2.5-{size.removeprefix("qwen2.5_").upper()}, {method}'
    for cell in reference.published('a_star_po'):
      if method and (cell.row, cell.column) == (row, column):
        return cell.value
    return None

  def compared(self) -> list[tuple[str, str]]:
    """Lists (size, algorithm) with a published comparison with A*-PO."""
    if _OURS not in self.algorithms:
      return []
    return [
        (size, name) for size in self.sizes for name in self.algorithms
        if name != _OURS and self.published(size, name, 'time') is not None]

  def saved(self, size: str, name: str, layout: str) -> float:
    """Fraction of memory that A*-PO's optimizer step saves."""
    return 1 - self.total(size, _OURS, layout) / self.total(size, name, layout)

  def published_saved(self, size: str, name: str) -> float:
    """Fraction of the published peak memory that A*-PO saves."""
    column = 'peak memory'
    return 1 - self.published(size, _OURS, column) / self.published(size, name, column)

  def time(self, size: str, name: str) -> float:
    """A*-PO's published hours over the other algorithm's."""
    return self.published(size, _OURS, 'time') / self.published(size, name, 'time')

  def work(self, size: str, name: str, *, stage1: bool) -> float:
    """A*-PO's operations over the other algorithm's."""
    return self.flops(size, _OURS, stage1=stage1) / self.flops(size, name)


def markdown(study: cost_model.Study, numbers: Mapping[str, Any]) -> str:
  """Renders all tables and the verdict; ends in a newline."""
  costs, workload = Costs(study, numbers), study.workload
  lines = [
      '# Cost of one iteration', '',
      f'{workload.prompts} prompts, mini-batches of {workload.minibatch_prompts}, prompts of '
      f'{workload.prompt_tokens} and responses of {workload.response_tokens} tokens, '
      f'{workload.devices} devices. {study.note}. From abstract shapes and compiled programs: '
      'nothing was run. Addresses: experiments/configs/cost.py.', '',
      '## Memory', '', _memory_table(study, costs), '',
      'GB = 1e9 bytes per device, parameters and Adam in float32. Trained: parameters and '
      'optimizer of policy and critic. KV cache: all rows of an iteration decoded at once, which '
      'a sampler need not do. Temporaries are those of one optimizer step on the CPU compiler, '
      'and can only be compared with each other: they, and their sum with trained and reference '
      f'bytes, are relative to those of {_base(study, costs)[1]}. That compiler widens bfloat16 '
      'to float32, so activations are larger relative to parameters than on an accelerator, and '
      'savings of activations look larger.', '',
      *(f'- {name}: {layout.title}' for name, layout in study.layouts.items()), '',
      '## Operations', '', _flops_table(study, costs), '',
      'PFLOP = 1e15, matrix products only, with the first layout\'s rematerialisation. '
      f'{_deviation(costs)}',
  ]

  if costs.compared():
    lines += ['', '## Comparison with the published columns', '',
              _published_table(study, costs), '',
              'Memory: savings of A*-PO. Time: A*-PO over the other. Source of both: '
              f'{_source()}.', '', '## Verdict', '', *_verdict(study, costs)]
  return '\n'.join(lines) + '\n'


def flat_table(
    numbers: Mapping[str, Any], sizes: Sequence[str], algorithms: Sequence[str]
) -> tuple[list[str], Iterable[list[Any]]]:
  """Header and rows of the CSV: one row per size and algorithm, one column per quantity."""
  prefix = f'{sizes[0]}/{algorithms[0]}/'
  quantities = [name.removeprefix(prefix) for name in numbers if name.startswith(prefix)]
  rows = [
      [size, name, *(numbers[f'{size}/{name}/{quantity}'] for quantity in quantities)]
      for size in sizes for name in algorithms]
  return ['model', 'algorithm', *quantities], rows


def figure(path: pathlib.Path, study: cost_model.Study, numbers: Mapping[str, Any]) -> None:
  """Plots memory and operations of every algorithm relative to A*-PO, as stacked bars."""
  costs = Costs(study, numbers)
  base = _base(study, costs)[0]
  rows = [*study.layouts, 'flops']

  size = 1.2 + 3.6 * len(costs.sizes), 2.5 * len(rows)
  labels = [study.recipes[name].label for name in costs.algorithms]

  with figures.figure(
      path, len(rows) * len(costs.sizes), columns=len(costs.sizes), size=size, share_x=True
  ) as panels:
    for axes, (row, size) in zip(panels, itertools.product(rows, costs.sizes)):
      _bars(axes, study, costs, size, row)
      axes.set_xticks(range(len(labels)), labels, rotation=45, ha='right')
      if row == rows[0]:
        axes.set_title(size)

    for row, in_row in zip(rows, panels.reshape(len(rows), -1)):
      title = 'operations' if row == 'flops' else f'memory, {row}'
      in_row[0].set_ylabel(f'{title}\n(over {study.recipes[base].label})')
      in_row[-1].legend(
          frameon=False, fontsize=7, loc='upper left', bbox_to_anchor=(1.0, 1.0))


def _bars(axes, study, costs, size, row) -> None:
  """Draws one bar per algorithm, relative to the base, and the published values as marks."""
  base = _base(study, costs)[0]
  labels = [study.recipes[name].label for name in costs.algorithms]
  whole = costs.flops(size, base) if row == 'flops' else costs.total(size, base, row)
  bottom = [0.0] * len(labels)
  for (part, values), colour in zip(_stack(study, costs, size, row).items(), _COLOURS):
    heights = [value / whole for value in values]
    axes.bar(labels, heights, bottom=bottom, color=colour, width=0.7, label=part)
    bottom = [b + h for b, h in zip(bottom, heights)]
  _published_marks(axes, study, costs, size, row)

  axes.grid(False, axis='x')
  axes.set_axisbelow(True)
  axes.use_sticky_edges = False  # Room above the tallest bar.
  axes.set_ylim(bottom=0)


def _stack(study, costs, size, row) -> dict[str, list[float]]:
  """Components of each algorithm's bar."""

  def each(fn):
    return [fn(name) for name in costs.algorithms]

  if row == 'flops':
    return {title: each(lambda name, p=part: costs(size, name, f'flops/{p}'))
            for part, title in _FLOPS.items()}
  temporaries = f'bytes_per_device/{row}/temporaries'
  return {
      'trained': each(lambda name: costs.resident(size, name)),
      'reference': each(
          lambda name: costs(size, name, 'bytes/reference') / study.workload.devices),
      'temporaries': each(lambda name: costs(size, name, temporaries)),
  }


def _published_marks(axes, study, costs, size, row) -> None:
  column = 'time' if row == 'flops' else 'peak memory'
  points = {
      study.recipes[name].label: costs.published(size, name, column)
      for name in costs.algorithms}
  points = {label: value for label, value in points.items() if value is not None}
  own = costs.published(size, _OURS, column) if _OURS in costs.algorithms else None
  if own:
    axes.plot(list(points), [value / own for value in points.values()], 'D', color='black', ms=4,
              ls='', label=f'published {column}')


def _memory_table(study, costs) -> str:
  header = ['model', 'algorithm', 'samples', 'trained (GB)', 'reference (GB)', 'KV cache (GB)']
  for layout in study.layouts:
    header += [f'temporaries, {layout}', f'sum, {layout}']

  base, devices = _base(study, costs)[0], study.workload.devices
  rows = []
  for size in costs.sizes:
    for name in costs.algorithms:
      gigabytes = [costs.resident(size, name) / _GIGA] + [
          costs(size, name, f'bytes/{key}') / devices / _GIGA for key in ('reference', 'kv_cache')]
      row = [size, study.recipes[name].label, costs(size, name, 'samples_per_prompt'),
             *(_digits(value) for value in gigabytes)]

      for layout in study.layouts:
        for key in ('temporaries', 'total'):
          quantity = f'bytes_per_device/{layout}/{key}'
          row.append(f'{costs(size, name, quantity) / costs(size, base, quantity):.2f}')
      rows.append(row)
  return figures.markdown_table(header, rows)


def _flops_table(study, costs) -> str:
  base, label = _base(study, costs)
  header = ['model', 'algorithm', *(f'{title} (PFLOP)' for title in _FLOPS.values()),
            'total', f'over {label}', 'with stage 1']
  rows = []
  for size in costs.sizes:
    for name in costs.algorithms:
      parts = [costs(size, name, f'flops/{part}') / _PETA for part in _FLOPS]
      over = [costs.flops(size, name, stage1=s) / costs.flops(size, base, stage1=s)
              for s in (False, True)]
      rows.append([
          size, study.recipes[name].label, *(_digits(part) if part else '-' for part in parts),
          _digits(costs.flops(size, name) / _PETA), *(f'{ratio:.2f}' for ratio in over)])
  return figures.markdown_table(header, rows)


def _published_table(study, costs) -> str:
  header = ['model', 'against', 'memory, published',
            *(f'memory, {layout}' for layout in study.layouts),
            'time, published', 'operations', 'operations with stage 1']
  rows = [
      [size, study.recipes[name].label, _percent(costs.published_saved(size, name)),
       *(_percent(costs.saved(size, name, layout)) for layout in study.layouts),
       f'{costs.time(size, name):.2f}',
       *(f'{costs.work(size, name, stage1=s):.2f}' for s in (False, True))]
      for size, name in costs.compared()]
  return figures.markdown_table(header, rows)


def _verdict(study, costs) -> list[str]:
  """Writes one memory paragraph per rival and one on time; every number is computed."""
  rivals = list(dict.fromkeys(name for _, name in costs.compared()))
  sizes = list(dict.fromkeys(size for size, _ in costs.compared()))

  paragraphs = []
  for name in rivals:
    span = lambda fn, name=name: _span([fn(size, name) for size in sizes], percent=True)
    layouts = '; '.join(
        f'{span(lambda s, n, x=layout: costs.saved(s, n, x))} with {study.layouts[layout].title}'
        for layout in study.layouts)
    trained = _span([costs.resident(s, name) / costs.resident(s, _OURS) for s in sizes])

    paragraphs += [
        f'**Memory against {study.recipes[name].label}.** Published: '
        f'{span(costs.published_saved)} less. Here: {layouts}. Trained networks and optimizers '
        f'take {trained} times as much. {_reason(study, costs, name, sizes)}', '']

  def ratios(fn):
    return '; '.join(
        f'{_span([fn(size, name) for size in sizes])} of {study.recipes[name].label}\'s'
        for name in rivals)

  # Only what the numbers show, and why operations are not hours.
  paragraphs.append(
      f'**Time.** Published hours of A*-PO: {ratios(costs.time)}. Operations of an iteration, '
      f'including stage 1 spread over {study.workload.stage1_epochs} epochs: '
      f'{ratios(lambda s, n: costs.work(s, n, stage1=True))}; without it: '
      f'{ratios(lambda s, n: costs.work(s, n, stage1=False))}. Operations are not hours: decoding '
      'reads all weights and the cache for each token, and takes longer than its share here; '
      'responses that stop early shorten it. It is not confirmed that the published hours include '
      'stage 1. '
      + _group_sentence(study, costs, sizes))
  return paragraphs


def _reason(study, costs, name, sizes) -> str:
  """Explains a difference in memory, as far as the numbers show it."""
  recipe = study.recipes[name]
  if recipe.critic:  # Savings if the two networks were updated one after the other.
    savings = []
    for size in sizes:
      for layout in study.layouts:
        temporaries = f'bytes_per_device/{layout}/temporaries'
        ours = costs(size, _OURS, temporaries)
        theirs = costs.total(size, name, layout) - costs(size, name, temporaries)
        savings.append(1 - costs.total(size, _OURS, layout) / (theirs + ours))

    return (
        'That is the second network with its optimizer. Here one loss has both networks, so their '
        'activations are live at the same time. The released trainer updates them one after the '
        'other (verl/trainer/apo/ray_trainer.py, fit): with the temporaries of one network, '
        f'{_span(savings, percent=True)} would remain. The released A*-PO script also reserves '
        '0.4 of the memory for the sampler (scripts/apo_math.sh, gpu_memory_utilization); if the '
        'baselines did so too (not confirmed), that alone makes the published numbers similar.')

  if recipe.samples == 2:
    return (
        'The networks are the same, and so are the temporaries of equally many sequences. A*-PO '
        'saves the second sequence of a pair, which must share a micro-batch with the first. That '
        'is much if the micro-batch is minimal and nothing is rematerialised, and almost nothing '
        'otherwise.')

  return (
      'The networks are the same, and so are the temporaries of equally many sequences. Here a '
      f'micro-batch has all {recipe.samples} samples of a prompt. A loss that is a sum over '
      'sequences can also split a group (the released A*-PO script takes one sequence at a time), '
      'and A*-PO then saves nothing. The number of sampled rows differs: '
      f'{recipe.samples} times the KV cache if all are decoded at once.')


def _group_sentence(study, costs, sizes) -> str:
  """States the number of samples at which operations would match the published hours."""
  for name in costs.algorithms:
    recipe = study.recipes[name]
    if recipe.samples > 2 and recipe.published:
      needed = []
      for size in sizes:
        model = next(iter(study.layouts.values())).apply_to(study.models[size])
        one, two = (cost_model.iteration(
            model, _with_samples(recipe, k), study.workload)['total'] for k in (1, 2))
        wanted = costs.flops(size, _OURS, stage1=True) / costs.time(size, name)
        needed.append(1 + (wanted - one) / (two - one))
      return (f'The group size of {recipe.label} is ours ({recipe.samples}): the published times '
              f'correspond to the operations of {_span(needed)} samples per prompt.')
  return ''


def _with_samples(recipe, samples):
  return cost_model.Recipe(**{**vars(recipe), 'samples': samples})


def _base(study, costs) -> tuple[str, str]:
  """Returns (name, label) of the algorithm that the others are divided by."""
  name = _OURS if _OURS in costs.algorithms else costs.algorithms[0]
  return name, study.recipes[name].label


def _deviation(costs) -> str:
  worst = max(abs(costs(size, name, 'flops/traced_over_formula') - 1)
              for size in costs.sizes for name in costs.algorithms)
  return (f'The traced train steps agree with the formulas up to {100 * worst:.1g} %; XLA\'s '
          'count of small programs agrees to 2 % (tests/experiments/cost/main_test.py).')


def _source() -> str:
  cell = reference.published('a_star_po')[0]
  return cell.address.removesuffix(f', row {cell.row}, column {cell.column}')


def _span(values: Sequence[float], *, percent: bool = False) -> str:
  low, high = min(values), max(values)
  show = (lambda x: _percent(x).removesuffix(' %')) if percent else '{:.2f}'.format
  low, high = show(low), show(high)
  text = low if low == high else f'{low} to {high}'
  return f'{text} %' if percent else text


def _percent(value: float) -> str:
  return f'{round(100 * value, 1) + 0.0:.1f} %'  # Avoids a negative zero.


def _digits(value: float) -> str:
  return f'{value:.3g}' if value < 1000 else f'{value:,.0f}'
