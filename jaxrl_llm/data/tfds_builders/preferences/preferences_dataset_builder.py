"""TFDS builder for preference data sets in a local file; needs no TensorFlow, downloads nothing.

  rows = preferences_dataset_builder.read(file, schema='tldr_pairs', cache_dir=cache)

or, with TFDS's own interface,

  builder = preferences_dataset_builder.Builder(file=file, schema='tldr_pairs', data_dir=cache)
  builder.download_and_prepare()
  source = builder.as_data_source(split='train')   # Random access; 'row' is JSON.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxrl_llm.data import preference_rows

SPLIT = 'train'  # All rows: the training program decides which rows to hold out.


class Builder(tfds.core.GeneratorBasedBuilder):
  """Preferences with the features index (row number in the file) and row (the rest, as JSON)."""

  name = 'preferences'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Rows of any schema of data.preference_rows.'}

  def __init__(
      self, *, file: str | pathlib.Path, schema: str = 'conversations', fields: str = '',
      **keywords: Any,
  ):
    """Initialises the builder.

    Args:
      file: see `preference_rows.read`.
      schema: see `preference_rows.read`.
      fields: see `preference_rows.read`.
      **keywords: `data_dir` and other arguments of a TFDS builder. Data already prepared there is
        reused, even if `file` has changed since (`read` instead uses one directory per content).
    """
    self._source = {'path': file, 'schema': schema, 'fields': fields}
    super().__init__(file_format='array_record', **keywords)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Prompts with a better and a worse response, where there are any.',
        features=tfds.features.FeaturesDict({'index': np.int32, 'row': tfds.features.Text()}),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    del dl_manager  # Nothing is downloaded.
    # Read the whole file before anything is written, so that a damaged one leaves no trace.
    return {SPLIT: self._generate_examples(preference_rows.read(**self._source))}

  def _generate_examples(
      self, rows: list[preference_rows.Row]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in rows:
      yield row.index, {'index': row.index, 'row': json.dumps(row._asdict())}


def read(
    file: str | pathlib.Path, *, schema: str = 'conversations', fields: str = '',
    cache_dir: str | pathlib.Path,
) -> list[preference_rows.Row]:
  """Reads a file through TFDS, and prepares it first if necessary.

  Args:
    file: see `preference_rows.read`.
    schema: see `preference_rows.read`.
    fields: see `preference_rows.read`.
    cache_dir: directory for prepared data, with one subdirectory per hash of the file's content
      and of how it is read, so that changed files are prepared again.

  Returns:
    The rows; equal to `preference_rows.read(file, schema=schema, fields=fields)`.

  Raises:
    ValueError: see `preference_rows.read`.
  """
  # 'columns checked' invalidates rows prepared by versions that dropped other columns.
  keys = json.dumps(['columns checked', schema, preference_rows.resolve(schema, fields)])
  try:
    digest = hashlib.sha256(keys.encode() + pathlib.Path(file).read_bytes())
  except OSError as error:
    raise ValueError(f'cannot read {file}: {error.strerror}') from None
  folder = pathlib.Path(cache_dir) / digest.hexdigest()[:16]
  folder.mkdir(parents=True, exist_ok=True)
  builder = Builder(file=file, schema=schema, fields=fields, data_dir=str(folder))
  builder.download_and_prepare()
  source = builder.as_data_source(split=SPLIT)
  rows = [preference_rows.Row(**json.loads(record['row'])) for record in source]
  return sorted(rows, key=lambda row: row.index)  # TFDS shuffles on writing.
