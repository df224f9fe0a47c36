"""Published numbers, each with its source: paper or repository, and position in it.

All numbers were read from the authors' own paper, code or figures; none is second-hand.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
  """One cell of a published table.

  Attributes:
    experiment: the binary that reproduces it.
    row: row of the published table, such as 'Qwen2.5-1.5B, A*-PO'.
    column: column of the published table.
    value: the published number.
    decimals: number of decimals in the published table.
    unit: unit of the value.
    address: paper or repository, table or file, row, column.
    setting: our setting that measures the same at the same scale; '' if there is none.
    key: name of our measurement in results.json; '' if there is none.
    factor: factor that converts our number to `unit`.
  """

  experiment: str
  row: str
  column: str
  value: float
  decimals: int
  unit: str
  address: str
  setting: str = ''
  key: str = ''
  factor: float = 1.0


_A_STAR_PO_FILE = 'A*-PO (arXiv 2505.20686), repository ZhaolinGao/A-PO, assets/evaluations.png'

# Columns of that figure: name, decimals, unit.
_A_STAR_PO_COLUMNS = (
    ('time', 2, 'hours'),
    ('peak memory', 2, '% of GPU memory'),
    ('KL', 3, 'to the reference; unit not stated'),
    ('MATH500', 1, '%'),
    ('Minerva', 2, '%'),
    ('Olympiad', 2, '%'),
    ('AMC23 avg@32', 2, '%'),
)

_A_STAR_PO_ROWS = (
    ('1.5B', 'base', None, None, None, 45.8, 16.91, 17.66, 20.55),
    ('1.5B', 'PPO', 10.84, 42.64, 0.151, 57.0, 21.69, 20.92, 29.84),
    ('1.5B', 'GRPO', 15.01, 42.19, 0.091, 58.0, 22.79, 21.07, 32.19),
    ('1.5B', 'REBEL', 10.33, 63.34, 0.098, 57.8, 20.22, 23.15, 31.67),
    ('1.5B', 'A*-PO', 6.92, 41.59, 0.069, 57.8, 22.43, 22.26, 31.88),
    ('3B', 'base', None, None, None, 50.8, 23.16, 23.74, 29.77),
    ('3B', 'PPO', 13.59, 54.95, 0.111, 65.8, 23.90, 26.71, 34.68),
    ('3B', 'GRPO', 18.26, 49.75, 0.102, 66.0, 25.00, 28.93, 34.61),
    ('3B', 'REBEL', 12.88, 74.32, 0.099, 67.0, 27.57, 28.19, 36.33),
    ('3B', 'A*-PO', 8.78, 49.28, 0.082, 66.2, 25.74, 28.04, 35.47),
    ('7B', 'base', None, None, None, 62.8, 22.43, 30.56, 39.61),
    ('7B', 'PPO', 20.53, 92.81, 0.133, 74.4, 30.88, 33.98, 55.47),
    ('7B', 'GRPO', 20.15, 77.82, 0.172, 73.2, 33.46, 33.98, 55.86),
    ('7B', 'REBEL', 14.67, 98.77, 0.124, 74.6, 34.56, 34.72, 56.88),
    ('7B', 'A*-PO', 11.01, 76.57, 0.078, 76.2, 34.56, 34.27, 56.25),
)


def _a_star_po() -> list[Published]:
  cells = []
  for size, method, *values in _A_STAR_PO_ROWS:
    row = f'Qwen2.5-{size}, {method}'
    for (column, decimals, unit), value in zip(_A_STAR_PO_COLUMNS, values, strict=True):
      if value is not None:
        # None of our settings measures the same: the decoding of these columns is not stated.
        cells.append(Published(
            experiment='a_star_po', row=row, column=column, value=value,
            decimals=decimals, unit=unit,
            address=f'{_A_STAR_PO_FILE}, row {row}, column {column}',
        ))
  return cells


_GCN_TABLE = 'Kipf and Welling (arXiv 1609.02907), table 2'


def _shoestring() -> list[Published]:
  # A backbone on public splits, with weight decay on the first layer only. Shoestring's own
  # numbers could not be confirmed.
  return [Published(
      experiment='shoestring', row='GCN', column=name, value=value, decimals=1, unit='%',
      address=f'{_GCN_TABLE}, row GCN, column {name}', setting=name.lower(),
      key='eval/gcn/softmax/public/first_layer_decay/accuracy', factor=100.0,
  ) for name, value in (('Citeseer', 70.3), ('Cora', 81.5))]


PUBLISHED: tuple[Published, ...] = (*_a_star_po(), *_shoestring())

# Printed below each of our tables that has settings without a published counterpart.
SCALE_NOTES = {
    'a_star_po': (
        'Scale differs: our settings train small decoders from scratch on problems of their own; '
        'the published rows are Qwen2.5 bases of 1.5B to 7B parameters trained on MATH with four '
        'H100 GPUs. The two tables show the same method, not the same measurement.'
    ),
}


def published(experiment: str) -> list[Published]:
  """Returns all cells of one experiment, in the order of the published table."""
  return [cell for cell in PUBLISHED if cell.experiment == experiment]


def counterpart(experiment: str, setting: str, key: str) -> Published | None:
  """Returns the published cell that measures `key` at the scale of `setting`, or None."""
  for cell in PUBLISHED:
    if (cell.experiment, cell.setting, cell.key) == (experiment, setting, key):
      return cell
  return None
