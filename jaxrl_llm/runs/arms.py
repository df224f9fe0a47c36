"""Cached arrays and figures for studies that run all seeds in one process."""

import io
import pathlib
from collections.abc import Callable, Mapping

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


def _write_atomic(path: pathlib.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    temporary.write_bytes(content)
