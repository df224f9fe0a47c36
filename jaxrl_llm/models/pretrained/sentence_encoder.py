"""Directories of sentence-transformers: an encoder with its pooling, such as mxbai-embed-large-v1.

modules.json lists the modules applied to a text: the encoder, 1_Pooling with a config.json that
selects the pooling, and possibly 2_Normalize.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxrl_llm.models import encoder
from jaxrl_llm.models.pretrained import bert, config_fields, huggingface, weights

_MODULES = 'modules.json'
_POOLING_MODES = {'cls': 'cls_token', 'mean': 'mean_tokens'}
_PREFIX = 'pooling_mode_'


def read_config(directory: str | os.PathLike) -> huggingface.Checkpoint:
  """Reads the config of an encoder's directory.

  Args:
    directory: a directory of sentence-transformers, or a plain BERT checkpoint, which gets mean
      pooling, as in sentence-transformers.

  Returns:
    A checkpoint whose config is an `encoder.EncoderConfig`, for `huggingface.load_params`.

  Raises:
    ValueError: one line, if a file is missing or damaged, or requires an unsupported feature.
  """
  directory = pathlib.Path(directory)
  pooling = {'pooling': 'mean'}
  folder, width = directory, None
  if (directory / _MODULES).is_file():
    modules = _read_modules(directory / _MODULES)
    kinds = [kind for kind, _ in modules]
    if kinds not in (['Transformer', 'Pooling'], ['Transformer', 'Pooling', 'Normalize']):
      raise ValueError(f'{directory / _MODULES} must list Transformer, Pooling and possibly '
                       f'Normalize, got {", ".join(kinds) or "nothing"}')

    folder = directory / modules[0][1]
    pooling_file = directory / modules[1][1] / 'config.json'
    mode, width = _read_pooling(pooling_file)
    pooling = {'pooling': mode, 'normalize': 'Normalize' in kinds}

  checkpoint = huggingface.read_config(folder)
  if checkpoint.model_type not in bert.MODEL_TYPES:
    raise ValueError(f'{folder / "config.json"}: an encoder must be of model_type '
                     f'{", ".join(bert.MODEL_TYPES)}, got {checkpoint.model_type!r}')
  if width not in (None, checkpoint.config.width):
    raise ValueError(f'{pooling_file}: word_embedding_dimension must be hidden_size '
                     f'({checkpoint.config.width}), got {width}')

  return checkpoint._replace(config=dataclasses.replace(checkpoint.config, **pooling))


def save(
    directory: str | os.PathLike, config: encoder.EncoderConfig, params: Any, **options: Any
) -> None:
  """Writes, atomically, a directory that sentence-transformers or transformers can load.

  Args:
    directory: new or empty directory.
    config: encoder config.
    params: parameters of the encoder.
    **options: dtype, fields, tokenizer_from and max_shard_bytes of `huggingface.save`.

  Raises:
    ValueError: the directory is in use.
    OSError: the directory cannot be written.
  """
  pooling = {'word_embedding_dimension': config.width}
  pooling |= {_PREFIX + theirs: ours == config.pooling for ours, theirs in _POOLING_MODES.items()}
  kinds = {'Transformer': '', 'Pooling': '1_Pooling'}
  kinds |= {'Normalize': '2_Normalize'} if config.normalize else {}
  modules = [
      {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
      for i, (kind, path) in enumerate(kinds.items())
  ]

  with weights.new_directory(directory) as folder:
    huggingface.save(
        folder, config, params, model_type=bert.MODEL_TYPES[0], role='trunk', **options)
    _write(folder / _MODULES, modules)
    for path in list(kinds.values())[1:]:
      (folder / path).mkdir()
    _write(folder / kinds['Pooling'] / 'config.json', pooling)


def _write(path: pathlib.Path, document: Any) -> None:
  path.write_text(json.dumps(document, indent=2) + '\n')


def _read_json(path: pathlib.Path, kind: type) -> Any:
  try:
    document = json.loads(path.read_bytes())
  except FileNotFoundError as error:
    raise ValueError(f'{path} is missing') from error
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  if not isinstance(document, kind):
    raise ValueError(
        f'{path} must contain a JSON {kind.__name__}, got a {type(document).__name__}')
  return document


def _read_modules(path: pathlib.Path) -> list[tuple[str, str]]:
  """Reads (kind, directory) of each module."""
  modules = _read_json(path, list)
  try:
    return [(module['type'].rsplit('.', 1)[-1], module['path']) for module in modules]
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} must list modules with a type and a path each') from error


def _read_pooling(path: pathlib.Path) -> tuple[str, int | None]:
  """Reads (pooling, width if given), from one switch per mode or (newer) the mode's name."""
  document = _read_json(path, dict)
  given = config_fields.Fields(document, name=str(path))
  given.only('include_prompt', True)
  width = given.take_same(('word_embedding_dimension', 'embedding_dimension'), None, kind=int)
  switched_on = [
      name.removeprefix(_PREFIX) for name in document
      if name.startswith(_PREFIX) and given.take(name, False)
  ]
  ours = {theirs: name for name, theirs in _POOLING_MODES.items()}
  modes = [ours.get(name, name) for name in switched_on]

  if 'pooling_mode' in given:
    modes.append(given.take('pooling_mode', kind=str))

  given.finish()
  if len(modes) != 1 or modes[0] not in _POOLING_MODES:
    raise ValueError(f'{path}: pooling must be one of {", ".join(_POOLING_MODES)}, got '
                     f'{" and ".join(modes) or "none"}')

  return modes[0], width
