"""Studies whose seeds run side by side in one process: what they keep and how they show it."""

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
  """The arrays of an arm: made, or read if an earlier process has made them.

  Args:
    path: an .npz file; it appears whole or not at all.
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
  """{name: mean over seeds, name_se: its standard error}; the latter with several seeds only.

  Args:
    name: a flat name for results.json.
    values: one number a seed.

  Returns:
    One or two entries.
  """
  mean, error = statistics.mean_and_standard_error(values)
  return {name: float(mean)} | ({f'{name}_se': float(error)} if len(values) > 1 else {})


@contextlib.contextmanager
def figure(path: pathlib.Path, panels: int, *, title: str) -> Iterator[Any]:
  """A figure of panels, three of them side by side (four: two), written whole when the block ends.

  Args:
    path: of the PNG.
    panels: how many.
    title: above all of them.

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
