"""Loads and saves checkpoint directories of transformers as a config and parameters.

  checkpoint = huggingface.read_config(directory)
  params = huggingface.load_params(checkpoint, abstract_params)
  huggingface.save(directory, config, params, model_type=checkpoint.model_type)
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import (
    bert,
    gemma,
    gpt2,
    gpt_neox,
    llama,
    mapping,
    qwen,
    weights,
)

# One module per family, with MODEL_TYPES, ARCHITECTURES, PREFIX, IGNORED, read_config, write_config
# and entries, and optionally OLD_NAMES ({end of a tensor's name: its former spelling}).
FAMILIES: tuple[ModuleType, ...] = (gpt2, gpt_neox, llama, qwen, gemma, bert)

ROLES = ('policy', 'value', 'trunk')

_HEADS = ('head', 'value_head', 'q_head')
# The head of a sequence classifier, in every family.
_VALUE_ENTRY = mapping.same('score.weight', 'value_head/kernel')

# Files next to the weights that define tokenization and generation.
TOKENIZER_FILES = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'generation_config.json', 'chat_template.jinja', 'vocab.json', 'merges.txt', 'encoder.json',
    'vocab.bpe', 'vocab.txt', '*.model',
)

# Fields that `save` writes itself, or that apply only to the original directory.
_OWN_FIELDS = frozenset({
    'architectures', 'model_type', 'torch_dtype', 'dtype', 'auto_map', 'quantization_config',
    '_name_or_path', 'transformers_version', 'id2label', 'label2id', 'num_labels',
})


class Checkpoint(NamedTuple):
  """A checkpoint, as described by its config.json.

  Attributes:
    config: model config.
    model_type: model_type in config.json.
    architecture: name of the saved class, '' if config.json does not name one.
    role: role of the architecture: 'policy' (a language model), 'value' (a sequence classifier,
      whose head is a value or reward head) or 'trunk' (no head).
    fields: fields of config.json.
    directory: directory of the checkpoint.
  """

  config: Any
  model_type: str
  architecture: str
  role: str
  fields: dict[str, Any]
  directory: pathlib.Path


def is_checkpoint(directory: str | os.PathLike) -> bool:
  """True if a directory has a config.json and weights, including rejected formats (pickles)."""
  directory = pathlib.Path(directory)
  return (directory / 'config.json').is_file() and (
      any(directory.glob('*.safetensors')) or (directory / weights.INDEX_FILE).exists()
      or weights.find_pickle(directory) is not None)


def read_config(directory: str | os.PathLike) -> Checkpoint:
  """Reads config.json.

  Args:
    directory: checkpoint directory.

  Returns:
    The checkpoint, with our config.

  Raises:
    ValueError: one line, if config.json is missing, damaged or quantised, or describes an
      unsupported model.
  """
  directory = pathlib.Path(directory)
  path = directory / 'config.json'
  if not path.is_file():
    raise ValueError(f'not a checkpoint directory, which has a config.json: {str(directory)!r}')

  try:
    fields = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error

  if not isinstance(fields, dict):
    raise ValueError(f'{path} must contain a JSON object, got a {type(fields).__name__}')
  if fields.pop('quantization_config', None):
    raise ValueError(
        f'{path} has a quantization_config: quantised weights are not supported; use the '
        'checkpoint in float32, float16 or bfloat16')

  try:
    family = find_family(fields.get('model_type'))
    architecture, role = _architecture(
        family, fields['model_type'], fields.get('architectures'))
    config = family.read_config(fields)
  except ValueError as error:
    # Errors about a field begin with the file name.
    raise ValueError(f'{path}: {error}'.replace(': config.json', '', 1)) from error

  return Checkpoint(config, fields['model_type'], architecture, role, fields, directory)


def find_family(model_type: Any) -> ModuleType:
  """Returns the module of a family; raises ValueError with the known names otherwise."""
  for family in FAMILIES:
    if model_type in family.MODEL_TYPES:
      return family
  if model_type == 'gemma3':
    raise ValueError(
        "model_type 'gemma3' is the multimodal model, whose image part is not supported: of Gemma "
        '3 only gemma3_text, a checkpoint of the text model alone, can be read')
  known = sorted(name for family in FAMILIES for name in family.MODEL_TYPES)
  raise ValueError(f'model_type must be one of {", ".join(known)}, got {model_type!r}')


def _is_of(architecture: str, model_type: str) -> bool:
  """True if a class is named after the model type; the suffix 'text' is optional."""
  stem = re.sub(r'(For\w+|LMHeadModel|Model)$', '', architecture).lower()
  own = model_type.replace('_', '')
  return stem in (own, own.removesuffix('text'))


def _architecture(family: ModuleType, model_type: str, names: Any) -> tuple[str, str]:
  """Returns (architecture, role)."""
  if not names:  # Early checkpoints name no class; they are language models or encoders.
    return '', 'policy' if 'policy' in family.ARCHITECTURES.values() else 'trunk'
  known = [name for name in family.ARCHITECTURES if _is_of(name, model_type)]
  if not isinstance(names, list) or names[0] not in known:
    raise ValueError(
        f'architectures must be one of {", ".join(known)} if model_type is {model_type!r}, got '
        f'{names!r}')
  return names[0], family.ARCHITECTURES[names[0]]


def load_params(
    checkpoint: Checkpoint,
    abstract_params: Any,
    *,
    fresh: Any = None,
    progress: Callable[[str, int], None] | None = None,
) -> Any:
  """Loads parameters onto their devices, one at a time, in the dtypes of the tree.

  The tree determines what is loaded: the trunk, and a head or value head if it has one. A language
  model can be loaded into the tree of a value, reward or Q-function: its head is skipped.
  Parameters that the checkpoint lacks, such as that value head or adapters, come from `fresh`.

  Args:
    checkpoint: checkpoint from `read_config`.
    abstract_params: nested dict of `jax.ShapeDtypeStruct`s with shardings; a parameter without
      a sharding goes to the first device.
    fresh: a tree with at least the parameters that the checkpoint lacks; the others are
      ignored.
    progress: called after each parameter with its path and size in bytes.

  Returns:
    Parameters with the structure of `abstract_params`.

  Raises:
    ValueError: one line that names tensor and file, or a parameter without a source.
  """
  reader = weights.Reader(checkpoint.directory)
  family = find_family(checkpoint.model_type)
  wanted = mapping.flatten(abstract_params)
  has_prefix = any(name.startswith(family.PREFIX) for name in reader.tensors)
  prefix = family.PREFIX if has_prefix else ''
  entries, skipped = _choose_entries(checkpoint, family, wanted)
  entries = _as_named(mapping.with_prefix(entries, prefix), family, reader)

  if _is_tied(checkpoint.config):
    embedding = next(e.theirs for e in entries if e.ours == ('embedder/embedding',))
    skipped += _check_tied_head(checkpoint, family, reader, embedding)
    if 'head/kernel' in wanted:  # An untied head, initialised to the embedding.
      entries.append(mapping.same(embedding, 'head/kernel'))

  elsewhere = mapping.uncovered(entries, abstract_params)
  loaded = mapping.unflatten({path: wanted[path] for path in wanted if path not in elsewhere})
  mapping.check(
      entries, reader, loaded, ignored=(*family.IGNORED, *skipped), prefix=prefix)
  given = mapping.flatten(fresh or {})
  if checkpoint.role == 'value' and 'value_head/bias' in wanted:
    given['value_head/bias'] = np.zeros(wanted['value_head/bias'].shape, np.float32)

  params = {path: _take(path, wanted[path], given, checkpoint) for path in elsewhere}
  for path, parameter in mapping.load(entries, reader, loaded):
    params[path] = parameter
    if progress is not None:
      progress(path, parameter.nbytes)

  return mapping.unflatten({path: params[path] for path in wanted})


def _choose_entries(
    checkpoint: Checkpoint, family: ModuleType, wanted: Mapping[str, Any]
) -> tuple[list[mapping.Entry], list[str]]:
  """Returns (entries to load, regular expressions for the tensors that may be skipped)."""
  in_head = lambda entry: all(path.startswith('head/') for path in entry.ours)
  entries = family.entries(checkpoint.config)
  heads = {
      'policy': [entry for entry in entries if in_head(entry)], 'value': [_VALUE_ENTRY],
      'trunk': []}[checkpoint.role]
  used = [entry for entry in heads if wanted.keys() & set(entry.ours)]
  # A tree with another head does not need theirs. A tree without any head would lose it silently.
  has_head = any(path.split('/')[0] in _HEADS for path in wanted)
  skipped = [re.escape(e.theirs) for e in heads if has_head and e not in used]
  return [entry for entry in entries if not in_head(entry)] + used, skipped


def _as_named(
    entries: list[mapping.Entry], family: ModuleType, reader: weights.Reader
) -> list[mapping.Entry]:
  """Returns the entries, with a tensor's former name if the files use it."""
  for new, old in getattr(family, 'OLD_NAMES', {}).items():
    renamed = [entry._replace(theirs=re.sub(f'{re.escape(new)}$', old, entry.theirs))
               for entry in entries]
    entries = [other if other.theirs.replace('{i}', '0') in reader else entry
               for entry, other in zip(entries, renamed)]
  return entries


def _is_tied(config: Any) -> bool:
  return isinstance(config, configs.TransformerConfig) and config.tie_embeddings  # Not encoders.


def _check_tied_head(
    checkpoint: Checkpoint, family: ModuleType, reader: weights.Reader, embedding: str
) -> list[str]:
  """Raises ValueError if a tied model's file has a head that differs from its embedding.

  Returns:
    Regular expressions for the head tensors, which are equal to the embedding.
  """
  untied = family.entries(dataclasses.replace(checkpoint.config, tie_embeddings=False))
  heads = [e.theirs for e in untied if e.ours == ('head/kernel',) and e.theirs in reader]
  for name in heads:
    if embedding in reader and not _are_equal(reader[name], reader[embedding]):
      raise ValueError(
          f'tensor {name} in {reader.tensors[name].file} differs from {embedding}, to which '
          'config.json ties it: set "tie_word_embeddings": false if the head is a separate matrix')
  return [re.escape(name) for name in heads]


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
  rows = 4096  # Per comparison, which allocates an array of the size of its operands.
  return a.shape == b.shape and all(
      np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def _take(
    path: str, leaf: jax.ShapeDtypeStruct, given: Mapping[str, Any], checkpoint: Checkpoint
) -> jax.Array:
  """Takes a parameter that the checkpoint lacks from `given`."""
  if path not in given:
    raise ValueError(
        f'parameter {path} of the model is not in {checkpoint.directory}, which contains a '
        f'{checkpoint.architecture or checkpoint.model_type}')
  if given[path].shape != leaf.shape:
    raise ValueError(
        f'the fresh parameter {path} has shape {list(given[path].shape)}, the model needs '
        f'{list(leaf.shape)}')
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.device_put(given[path].astype(leaf.dtype), sharding)


def save(
    directory: str | os.PathLike,
    config: Any,
    params: Any,
    *,
    model_type: str,
    dtype: str = 'float32',
    role: str = 'policy',
    fields: Mapping[str, Any] | None = None,
    tokenizer_from: str | os.PathLike | None = None,
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes, atomically, a directory that transformers can load.

  Args:
    directory: new or empty directory.
    config: model config.
    params: parameters: the trunk and the head of the role.
    model_type: model_type in config.json, which selects the family.
    dtype: dtype of the tensors, 'float32' or 'bfloat16'.
    role: 'policy' (with the language model's head), 'value' (with a value head, as a sequence
      classifier) or 'trunk' (without a head).
    fields: config.json of the original checkpoint; fields that do not change the model (special
      ids, initialisation) are copied.
    tokenizer_from: directory whose tokenizer and generation files are copied.
    files: additional files, such as those of a tokenizer: contents by name.
    max_shard_bytes: maximum data size of one file.

  Raises:
    ValueError: the family cannot express the model, or the directory is in use.
    OSError: the directory cannot be written.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise ValueError(f'dtype must be float32 or bfloat16, got {dtype!r}')
  if role not in ROLES:
    raise ValueError(f'role must be one of {", ".join(ROLES)}, got {role!r}')

  family = find_family(model_type)
  entries = family.entries(config)
  fields = {} if fields is None else fields
  document = config_document(
      config, model_type=model_type, role=role, dtype=dtype, fields=fields)
  if role != 'policy':
    entries = [e for e in entries if not all(path.startswith('head/') for path in e.ours)]
  if role == 'value':
    entries.append(_VALUE_ENTRY)
    params = _without_bias(params)
    document |= _labels(params['value_head']['kernel'].shape[0], fields)

  entries = mapping.with_prefix(entries, '' if role == 'trunk' else family.PREFIX)
  tensors = list(mapping.tensors(entries, params, dtype))
  copies = [] if tokenizer_from is None else _tokenizer_files(tokenizer_from)

  with weights.new_directory(directory) as folder:
    (folder / 'config.json').write_text(json.dumps(document, indent=2, sort_keys=True) + '\n')
    for path in copies:
      shutil.copyfile(path, folder / path.name)
    for name, content in (files or {}).items():
      (folder / name).write_bytes(content)
    weights.write_files(folder, tensors, max_shard_bytes=max_shard_bytes)


def config_document(
    config: Any, *, model_type: str, role: str, dtype: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Builds config.json: the family's fields, and those of `fields` that do not change the model."""
  family = find_family(model_type)
  document = {
      **family.write_config(config, model_type), 'model_type': model_type,
      'architectures': [_architecture_for(family, model_type, role)], 'torch_dtype': dtype,
  }
  meaning = family.read_config(document)
  for name, value in fields.items():
    if name not in document and name not in _OWN_FIELDS:
      with contextlib.suppress(ValueError):
        if family.read_config({**document, name: value}) == meaning:
          document[name] = value
  return document


def _architecture_for(family: ModuleType, model_type: str, role: str) -> str:
  """Returns the class name for a role."""
  for name, its_role in family.ARCHITECTURES.items():
    if its_role == role and _is_of(name, model_type):
      return name
  raise ValueError(f'a {model_type} cannot be saved with role {role!r}: it has no such class')


def _without_bias(params: Any) -> Any:
  """Removes the value head's bias, which must be 0."""
  head = dict(params.get('value_head', {}))
  bias = np.asarray(head.pop('bias', 0.0), np.float32)
  if 'kernel' not in head:
    raise ValueError("role 'value' needs parameters with a value_head")
  if bias.any():
    raise ValueError(
        f'value_head/bias must be 0 to be saved, got {bias.tolist()}: the head of a sequence '
        'classifier in transformers has no bias; set it to 0 if rewards are only compared, or keep '
        'the Orbax checkpoint')
  return {**params, 'value_head': head}


def _labels(number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields from which transformers infers the number of outputs of the head."""
  names = fields.get('id2label')
  if not isinstance(names, dict) or len(names) != number:
    names = {str(i): f'LABEL_{i}' for i in range(number)}
  return {'id2label': names, 'label2id': {name: int(i) for i, name in names.items()}}


def _tokenizer_files(directory: str | os.PathLike) -> list[pathlib.Path]:
  directory = pathlib.Path(directory)
  paths = [path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern))]
  if not paths:
    raise ValueError(f'tokenizer_from must be a directory with tokenizer files, got {directory}')
  return paths
