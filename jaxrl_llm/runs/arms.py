"""Cached arrays and figures for studies that run all seeds in one process."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl_llm.evaluation import statistics
from jaxrl_llm.training import files


def kept(
    path: pathlib.Path, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """Returns the arrays of an arm, computed or read from the file of an earlier process.

  Args:
    path: an .npz file; written atomically.
    make: computes the arrays by name.

  Returns:
    The arrays by name.
  """
  if path.exists():
    with np.load(path) as arrays:
      return dict(arrays)
  arrays = {name: np.asarray(value) for name, value in make().items()}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  _write_atomic(path, buffer.getvalue())
  return arrays


def summary(name: str, values: np.ndarray) -> dict[str, float]:
  """Returns {name: mean over seeds, name_se: its standard error}; no error for one seed.

  Args:
    name: a flat name for results.json.
    values: one number per seed.

  Returns:
    One or two entries.
  """
  mean, error = statistics.mean_and_standard_error(values)
  return {name: float(mean)} | ({f'{name}_se': float(error)} if len(values) > 1 else {})


@contextlib.contextmanager
def figure(path: pathlib.Path, panels: int, *, title: str) -> Iterator[Any]:
  """Makes a figure of panels, three per row (two if there are four), saved when the block ends.

  Args:
    path: where to write the PNG; written atomically.
    panels: number of panels.
    title: title above all panels.

  Yields:
    The axes, [panels].
  """
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  columns = 2 if panels == 4 else min(panels, 3)
  rows = -(-panels // columns)
  drawing, grid = plt.subplots(
      rows, columns, figsize=(5.2 * columns, 4.4 * rows), layout='constrained', squeeze=False)
  drawing.suptitle(title)
  axes, unused = grid.ravel()[:panels], grid.ravel()[panels:]

  for panel in axes:
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)
  for panel in unused:
    panel.remove()

  try:
    yield axes
    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=150, format='png')
    _write_atomic(path, buffer.getvalue())
  finally:
    plt.close(drawing)


def _write_atomic(path: pathlib.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    temporary.write_bytes(content)
