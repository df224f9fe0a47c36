"""TFDS builder for GSM8K from local files; needs no TensorFlow and downloads nothing.

  problems = gsm8k_dataset_builder.read(source_dir, 'train', cache_dir=cache)

or, with TFDS's own interface,

  builder = gsm8k_dataset_builder.Builder(source_dir=source_dir, data_dir=cache)
  builder.download_and_prepare()
  source = builder.as_data_source(split='train')   # Random access; texts are bytes.
"""

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxrl_llm.data import gsm8k


class Builder(tfds.core.GeneratorBasedBuilder):
  """GSM8K with the features index (line in the file), question, and answer."""

  name = 'gsm8k'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The published train and test files, unchanged.'}

  def __init__(self, *, source_dir: str | pathlib.Path, **keywords: Any):
    """Initialises the builder.

    Args:
      source_dir: directory of train.jsonl and test.jsonl.
      **keywords: `data_dir` and other arguments of a TFDS builder. Data already prepared
        there is reused, even if `source_dir` has changed since (`read` instead uses one
        directory per content).
    """
    self._source_dir = pathlib.Path(source_dir)
    super().__init__(file_format='array_record', **keywords)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Grade-school word problems with worked solutions.',
        features=tfds.features.FeaturesDict({
            'index': np.int32,
            'question': tfds.features.Text(),
            'answer': tfds.features.Text(),
        }),
        homepage='https://github.com/openai/grade-school-math',
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    del dl_manager  # Nothing is downloaded.
    # Read both files before anything is written, so that a damaged one leaves no trace.
    splits = {split: gsm8k.load_split(self._source_dir, split) for split in gsm8k.SPLITS}
    return {split: self._generate_examples(problems) for split, problems in splits.items()}

  def _generate_examples(
      self, problems: list[gsm8k.Problem]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for problem in problems:
      yield problem.index, problem._asdict()


def read(
    source_dir: str | pathlib.Path, split: str, *, cache_dir: str | pathlib.Path
) -> list[gsm8k.Problem]:
  """Reads a split through TFDS, and prepares it first if necessary.

  Args:
    source_dir: directory of train.jsonl and test.jsonl.
    split: 'train' or 'test'.
    cache_dir: directory for prepared data, with one subdirectory per hash of the source's
      content, so that changed files are prepared again.

  Returns:
    The problems in file order; equal to `gsm8k.load_split(source_dir, split)`.

  Raises:
    ValueError: see `gsm8k.load_split`.
  """
  if split not in gsm8k.SPLITS:
    raise ValueError(f"split must be 'train' or 'test', got {split!r}")

  digest = hashlib.sha256()
  for name in gsm8k.SPLITS:
    path = pathlib.Path(source_dir) / f'{name}.jsonl'
    try:
      digest.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError as error:
      raise ValueError(f'cannot read {path}: {error.strerror}') from None

  folder = pathlib.Path(cache_dir) / digest.hexdigest()[:16]
  folder.mkdir(parents=True, exist_ok=True)
  builder = Builder(source_dir=source_dir, data_dir=str(folder))
  builder.download_and_prepare()
  problems = [
      gsm8k.Problem(int(row['index']), row['question'].decode(), row['answer'].decode())
      for row in builder.as_data_source(split=split)
  ]

  return sorted(problems)  # TFDS shuffles on writing; the index is the first field.
