"""Checkpoint sources: directories written by this project, or Hugging Face checkpoints.

The directory decides the model's shape; the run's config decides how it is computed.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm import checks
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.models.pretrained import adapter_config, gguf, huggingface, peft
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.training import checkpoints, fingerprint
from jaxrl_llm.types import ModelFns, Params, Tokenizer

# Fields of a `CheckpointSource` that are saved with parameters, for code that writes them again.
TOKENIZER_METADATA = ('stop_ids', 'stop_tokens', 'kept_ids')
_TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'encoder.json', '*.model')


class CheckpointSource(NamedTuple):
  """A directory of parameters, read but not loaded.

  Attributes:
    directory: the directory.
    model: the shape of the parameters, with default compute fields.
    tokenizer: fingerprint of the tokenizer; '' for a checkpoint without one.
    tokenizer_dir: where the tokenizer is: the directory itself, or the checkpoint that the
      parameters came from; '' if unknown.
    hugging_face: saved with parameters that came from a Hugging Face checkpoint, so that they can
      be converted back: {'model_type', 'fields', 'role', 'num_outputs', 'directory'}; else {}.
    checkpoint: contents of config.json, or None for a directory written by this project.
    field: the config field that named the directory, for errors.
    stop_ids: ids that ended a response when the parameters were trained; () if they are the
      tokenizer's, or unknown.
    stop_tokens: the texts of these ids; () if they have none.
    kept_ids: base ids of a reduced vocabulary (`tokenizers.compact`); () if it is full.
    adapters: directory of adapters in `peft` format that `load` merges into the parameters of
      `directory`, their base; None without.
  """

  directory: pathlib.Path
  model: configs.TransformerConfig
  tokenizer: str
  tokenizer_dir: str
  hugging_face: dict[str, Any]
  checkpoint: huggingface.Checkpoint | None
  field: str
  stop_ids: tuple[int, ...] = ()
  stop_tokens: tuple[str, ...] = ()
  kept_ids: tuple[int, ...] = ()
  adapters: pathlib.Path | None = None

  def describe(self) -> str:
    """Describes the source in one phrase for the terminal."""
    kind = self.checkpoint.model_type if self.checkpoint else 'of this project'
    merged = f', with the adapters in {self.adapters}' if self.adapters else ''
    return f'from {self.directory} ({kind}){merged}'

  def load(self, abstract_params: Params, *, fresh: Params | None = None) -> Params:
    """Loads the parameters onto the mesh.

    Args:
      abstract_params: shapes, dtypes and shardings.
      fresh: provides parameters that a Hugging Face checkpoint lacks, such as a value head.

    Returns:
      The parameters.

    Raises:
      ValueError: one line that says what is missing, damaged or of another shape.
    """
    if self.checkpoint:
      params = huggingface.load_params(self.checkpoint, abstract_params, fresh=fresh)
      return self._merged(params) if self.adapters else params

    load = lambda abstract: checkpoints.load_params(self.directory, abstract, cast=True)[0]
    if not (self.model.tie_embeddings and 'head' in abstract_params):
      return load(abstract_params)

    # An untied head starts as a copy of the embedding that it was tied to.
    params = load({name: tree for name, tree in abstract_params.items() if name != 'head'})
    kernel = jnp.copy(params['embedder']['embedding'])
    sharding = abstract_params['head']['kernel'].sharding
    return {**params, 'head': {'kernel': jax.device_put(kernel, sharding)}}

  def _merged(self, params: Params) -> Params:
    """Merges the adapters into the parameters of their base; donates these."""
    config, adapters = peft.load(
        self.adapters, self.model, model_type=self.hugging_face['model_type'])
    merge = jax.jit(
        lambda base, adapters: lora_lib.merge({'base': base, 'adapters': adapters}, config),
        donate_argnums=0, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, params))
    try:
      return merge(params, adapters)
    except ValueError as error:
      raise ValueError(f'{error} ({self.field}={self.adapters})') from error

  def initial(self, params: Params) -> 'InitialParams':
    """Returns the identity of `params`, which were loaded from here."""
    return InitialParams(fingerprint.of_params(params), self)

  def load_on_one_device(self, model: ModelFns) -> Params:
    """Loads the parameters of `model` onto the first device; raises like `load`."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return self.load(jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(model.init, jax.random.key(0))))

  def load_tokenizer(self) -> Tokenizer:
    """Loads the directory's tokenizer; raises ValueError if none is known."""
    if not self.tokenizer_dir:
      raise ValueError(f'no tokenizer is known of {self.directory} ({self.field})')
    return tokenizers.load_tokenizer(self.tokenizer_dir)

  def policy_tokenizer(self) -> task_config.PolicyTokenizer:
    """Returns what a task needs to know about the tokenizer."""
    return task_config.PolicyTokenizer(
        self.tokenizer_dir, bool(self.hugging_face), self.stop_tokens)

  def check_tokenizer(self, tokenizer: Tokenizer, *, of: str) -> None:
    """Raises ValueError if the directory's tokenizer is known and differs."""
    if self.tokenizer and not tokenizers.is_same(tokenizer, self.tokenizer):
      raise ValueError(
          f'the tokenizer of {self.directory} ({self.tokenizer}) is not that of {of} '
          f'({tokenizer.fingerprint}) ({self.field}; config.task.tokenizer_dir, where a task has '
          'one)'
      )

  def stopping(self, tokenizer: Tokenizer) -> Tokenizer:
    """Returns `tokenizer` with the stop ids that the parameters were trained with."""
    return tokenizers.with_stop_ids(tokenizer, self.stop_ids or tokenizer.stop_ids)


class InitialParams(NamedTuple):
  """The parameters from which a run started.

  Attributes:
    fingerprint: their fingerprint.
    source: the checkpoint source that they were loaded from.
  """

  fingerprint: str
  source: CheckpointSource

  def check(self, other: str) -> None:
    """Raises ValueError unless the fingerprint in a checkpoint is that of these parameters."""
    if other != self.fingerprint:
      raise ValueError(
          f'{self.source.directory} ({self.source.field}) holds other parameters '
          f'({self.fingerprint}) than this run started from ({other}); give another --workdir'
      )


def read(directory: str, *, field: str, tokenizer_named: bool = False) -> CheckpointSource:
  """Reads the metadata of a directory of parameters.

  Args:
    directory: written by `checkpoints.save_params` (WORKDIR/params, WORKDIR/trained); a
      Hugging Face checkpoint (config.json and *.safetensors); or adapters in `peft` format
      (adapter_config.json) whose base is a directory here.
    field: the config field that names it, for errors.
    tokenizer_named: whether another directory was named for the tokenizer: an unusable tokenizer
      next to the parameters is then ignored.

  Returns:
    The checkpoint source.

  Raises:
    ValueError: if the directory holds neither, or it cannot be used.
  """
  path = pathlib.Path(directory)
  if gguf.is_gguf(path):
    raise ValueError(
        f'{field} must be a directory, got a GGUF file: convert it with `python -m '
        f'experiments.convert --from={directory} --to=DIR`')
  if not path.is_dir():
    hint = checks.model_directory_hint(directory)
    raise ValueError(f'{field}: not a directory: {directory!r}{hint}')
  if peft.is_adapters(path):
    return _read_adapters(path, field=field, tokenizer_named=tokenizer_named)
  if huggingface.is_checkpoint(path):
    checkpoint = huggingface.read_config(path)
    if not isinstance(checkpoint.config, configs.TransformerConfig):
      raise ValueError(
          f'{field} must hold a decoder, got a {checkpoint.model_type} encoder in {directory}'
      )

    tokenizer = ''
    if any(next(path.glob(name), None) for name in _TOKENIZER_FILES):
      try:
        tokenizer = tokenizers.load_tokenizer(path).fingerprint
      except ValueError:
        if not tokenizer_named:
          raise
    return CheckpointSource(
        path, checkpoint.config, tokenizer, str(path) if tokenizer else '',
        _hugging_face(checkpoint), checkpoint, field,
    )

  if hint := checks.model_directory_hint(directory):
    raise ValueError(f'{field}: no parameters in {directory!r}{hint}')
  metadata = checkpoints.read_metadata(path)
  known = {item.name for item in dataclasses.fields(configs.TransformerConfig)}
  model = configs.TransformerConfig(
      **{name: value for name, value in metadata.get('model', {}).items() if name in known}
  )
  tokenizer = str(metadata.get('tokenizer', ''))
  hugging_face = metadata.get('hugging_face', {})
  return CheckpointSource(
      path, model, tokenizer, _remembered(hugging_face.get('directory', ''), tokenizer),
      hugging_face, None, field,
      **{name: tuple(metadata.get(name, ())) for name in TOKENIZER_METADATA},
  )


def _read_adapters(
    path: pathlib.Path, *, field: str, tokenizer_named: bool
) -> CheckpointSource:
  """Reads the base of a directory of adapters; see `read`."""
  base = peft.base_directory(path)
  if not base or not pathlib.Path(base).is_dir():
    what = f'of {base!r}, which is not a directory here' if base else 'that do not name their base'
    raise ValueError(
        f'{field}: {path} holds adapters {what}: write the directory of the base model as '
        f'base_model_name_or_path into {path / adapter_config.FILE}, or give WORKDIR/trained of '
        f'the run, which has them merged{checks.model_directory_hint(base)}')

  source = read(base, field=f'{field}={path}, base_model_name_or_path',
                tokenizer_named=tokenizer_named)
  if not source.checkpoint:
    raise ValueError(
        f'{field}: the base of the adapters in {path} must be a Hugging Face checkpoint, got '
        f'{base}')
  adapter_config.read(path / adapter_config.FILE, num_layers=source.model.num_layers)

  if any(next(path.glob(name), None) for name in _TOKENIZER_FILES) and not tokenizer_named:
    source = source._replace(
        tokenizer=tokenizers.load_tokenizer(path).fingerprint, tokenizer_dir=str(path),
        hugging_face={**source.hugging_face, 'directory': str(path.absolute())})
  return source._replace(adapters=path, field=field)


def _hugging_face(checkpoint: huggingface.Checkpoint) -> dict[str, Any]:
  """Returns `CheckpointSource.hugging_face` of a checkpoint."""
  return {
      'model_type': checkpoint.model_type, 'fields': checkpoint.fields, 'role': checkpoint.role,
      'num_outputs': _num_outputs(checkpoint),
      'directory': str(checkpoint.directory.absolute()),
  }


def _num_outputs(checkpoint: huggingface.Checkpoint) -> int:
  """Returns the rows of a sequence classifier's head; 2 unless config.json says otherwise."""
  path, fields = checkpoint.directory / 'config.json', checkpoint.fields
  labels, number = fields.get('id2label'), fields.get('num_labels')
  if labels is not None and not isinstance(labels, dict):
    raise ValueError(f'{path}: id2label must be an object, got {labels!r}')
  if number is not None and (type(number) is not int or number < 1):
    raise ValueError(f'{path}: num_labels must be a positive integer, got {number!r}')
  return len(labels) if labels else number or 2


def _remembered(directory: str, tokenizer: str) -> str:
  """Returns the tokenizer's directory if it still holds the one used in training, else ''."""
  try:
    same = bool(directory) and tokenizers.is_same(tokenizers.load_tokenizer(directory), tokenizer)
  except ValueError:
    same = False
  return directory if same else ''


def resolve_model(
    model: configs.TransformerConfig, source: CheckpointSource | None, *,
    overrides: Sequence[str] = (),
) -> configs.TransformerConfig:
  """Combines the shape of a checkpoint source with the compute fields of a config.

  A config whose `vocab_size` is 0 describes a randomly initialised model that fits a task: loaded
  parameters replace its shape. A config that sets its vocabulary means a particular published
  model, and the directory must hold that model.

  Two fields may be overridden on the command line. `max_length` is not part of the shape if
  positions are rotary. `tie_embeddings=False` gives a tied model an untied head.

  Args:
    model: the model config.
    source: the checkpoint source, or None for random initialisation.
    overrides: config fields given on the command line, such as 'model.width'.

  Returns:
    A new config.

  Raises:
    ValueError: if a field contradicts the directory's shape.
  """
  if source is None:
    return dataclasses.replace(model)

  changes = {name: getattr(model, name) for name in configs.COMPUTE_FIELDS}
  rotary, unties = source.model.positions == 'rope', not model.tie_embeddings
  if rotary and 'model.max_length' in overrides:
    changes['max_length'] = model.max_length
  if source.model.tie_embeddings and unties and 'model.tie_embeddings' in overrides:
    changes['tie_embeddings'] = False

  for item in dataclasses.fields(model):
    ours, theirs = getattr(model, item.name), getattr(source.model, item.name)
    if item.name in changes or ours == theirs or (rotary and item.name == 'max_length'):
      continue
    if model.vocab_size or f'model.{item.name}' in overrides:
      raise ValueError(
          f'config.model.{item.name} is {ours!r}, and {theirs!r} in {source.directory}, which '
          f'decides the shape ({source.field})'
      )
  return dataclasses.replace(source.model, **changes)


def identity(tokenizer_fingerprint: str, model: configs.TransformerConfig) -> dict[str, Any]:
  """Returns the identity of a run's tokenizer and model, saved and compared on load.

  Compute fields (rematerialisation, unrolling, blocks, dtypes) are excluded: they may differ.
  """
  shape = dataclasses.asdict(model)
  for name in configs.COMPUTE_FIELDS:
    del shape[name]
  return {'tokenizer': tokenizer_fingerprint, 'model': shape}


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns `stop_ids`, `stop_tokens` and `kept_ids` of a tokenizer, to save with parameters."""
  kept_ids = tokenizer.kept_ids if isinstance(tokenizer, tokenizers.CompactTokenizer) else ()
  return {
      'stop_ids': list(tokenizer.stop_ids), 'stop_tokens': list(tokenizers.stop_tokens(tokenizer)),
      'kept_ids': list(kept_ids),
  }
