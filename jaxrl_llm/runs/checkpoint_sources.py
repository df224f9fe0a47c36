"""Where parameters come from: a folder of this project's, or a Hugging Face checkpoint.

The folder decides the model's shape; how it is computed stays with the run.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.training import checkpoints
from jaxrl_llm.types import ModelFns, Params, Tokenizer

# Fields of an `Origin` that are kept with parameters, for whoever writes them anew.
ABOUT_TOKENIZER = ('stop_ids', 'stop_tokens', 'kept_ids')
_TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'encoder.json', '*.model')


class Origin(NamedTuple):
  """A folder of parameters, read but not loaded.

  Attributes:
    directory: the folder.
    model: the shape of what lies there; computed as by default.
    tokenizer: its tokenizer's fingerprint; '' for a checkpoint without one.
    tokenizer_dir: where that tokenizer lies: in the folder itself, or in the checkpoint
      that the parameters came from; '' where that is not known.
    hugging_face: what is kept with parameters that came from a checkpoint, so that they can
      go back: {'model_type', 'fields', 'role', 'num_outputs', 'directory'}; {} if none did.
    checkpoint: what config.json says, or None for a folder of this project's.
    field: the config field that named the folder, for errors.
    stop_ids: what ended a response when the parameters were trained; () where that is as the
      tokenizer says, or not known.
    stop_tokens: the texts of these ids; () where they have none.
    kept_ids: of a reduced vocabulary (`tokenizers.compact`), in its base; () where it is whole.
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

  def describe(self) -> str:
    """One phrase for the terminal."""
    kind = self.checkpoint.model_type if self.checkpoint else 'of this project'
    return f'from {self.directory} ({kind})'

  def load(self, abstract_params: Params, *, fresh: Params | None = None) -> Params:
    """Loads the parameters onto the mesh.

    Args:
      abstract_params: shapes, dtypes and shardings.
      fresh: gives what a Hugging Face checkpoint does not have, such as a value head.

    Returns:
      The parameters.

    Raises:
      ValueError: one line about what is missing, damaged or of another shape.
    """
    if self.checkpoint:
      return huggingface.load_params(self.checkpoint, abstract_params, fresh=fresh)
    load = lambda abstract: checkpoints.load_params(self.directory, abstract, cast=True)[0]
    if not (self.model.tie_embeddings and 'head' in abstract_params):
      return load(abstract_params)
    # A head of its own, which starts as the embedding that it was tied to.
    params = load({name: tree for name, tree in abstract_params.items() if name != 'head'})
    kernel = jnp.copy(params['embedder']['embedding'])
    sharding = abstract_params['head']['kernel'].sharding
    return {**params, 'head': {'kernel': jax.device_put(kernel, sharding)}}

  def load_on_one_device(self, model: ModelFns) -> Params:
    """Loads what `model.init` would make onto the first device; raises as `load` does."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return self.load(jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        jax.eval_shape(model.init, jax.random.key(0))))

  def load_tokenizer(self) -> Tokenizer:
    """The folder's tokenizer; raises ValueError where none is known."""
    if not self.tokenizer_dir:
      raise ValueError(f'no tokenizer is known of {self.directory} ({self.field})')
    return tokenizers.load_tokenizer(self.tokenizer_dir)

  def check_tokenizer(self, tokenizer: Tokenizer, *, of: str) -> None:
    """Raises ValueError if the folder's tokenizer is known and is another one."""
    if self.tokenizer and not tokenizers.is_same(tokenizer, self.tokenizer):
      raise ValueError(
          f'the tokenizer of {self.directory} ({self.tokenizer}) is not that of {of} '
          f'({tokenizer.fingerprint}) ({self.field}; config.task.tokenizer_dir, where a task has '
          'one)'
      )

  def stopping(self, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of the parameters, with the stop ids that they were trained with."""
    return tokenizers.with_stop_ids(tokenizer, self.stop_ids or tokenizer.stop_ids)


def read(directory: str, *, field: str, tokenizer_named: bool = False) -> Origin:
  """Finds out what lies in a folder.

  Args:
    directory: written by `checkpoints.save_params` (WORKDIR/params, WORKDIR/trained), or a
      Hugging Face checkpoint (config.json and *.safetensors).
    field: the config field that names it, for errors.
    tokenizer_named: whether another folder was named for the tokenizer: one beside the
      parameters that cannot be used is then as none.

  Returns:
    What lies there.

  Raises:
    ValueError: neither lies there, or it cannot be used.
  """
  path = pathlib.Path(directory)
  if not path.is_dir():
    raise ValueError(f'{field} is no folder: {directory!r}')
  if huggingface.is_checkpoint(path):
    checkpoint = huggingface.read_config(path)
    if not isinstance(checkpoint.config, configs.TransformerConfig):
      raise ValueError(
          f'{field} must hold a decoder, got a {checkpoint.model_type} encoder in {directory}'
      )
    fingerprint = ''
    if any(next(path.glob(name), None) for name in _TOKENIZER_FILES):
      try:
        fingerprint = tokenizers.load_tokenizer(path).fingerprint
      except ValueError:
        if not tokenizer_named:
          raise
    return Origin(
        path, checkpoint.config, fingerprint, str(path) if fingerprint else '',
        _about(checkpoint), checkpoint, field,
    )
  metadata = checkpoints.read_metadata(path)
  known = {item.name for item in dataclasses.fields(configs.TransformerConfig)}
  model = configs.TransformerConfig(
      **{name: value for name, value in metadata.get('model', {}).items() if name in known}
  )
  fingerprint = str(metadata.get('tokenizer', ''))
  about = metadata.get('hugging_face', {})
  return Origin(
      path, model, fingerprint, _remembered(about.get('directory', ''), fingerprint), about, None,
      field, **{name: tuple(metadata.get(name, ())) for name in ABOUT_TOKENIZER},
  )


def _about(checkpoint: huggingface.Checkpoint) -> dict[str, Any]:
  """`Origin.hugging_face` of a checkpoint."""
  return {
      'model_type': checkpoint.model_type, 'fields': checkpoint.fields, 'role': checkpoint.role,
      'num_outputs': _num_outputs(checkpoint),
      'directory': str(checkpoint.directory.absolute()),
  }


def _num_outputs(checkpoint: huggingface.Checkpoint) -> int:
  """Rows of a sequence classifier's head; two where config.json does not say, as elsewhere."""
  path, fields = checkpoint.directory / 'config.json', checkpoint.fields
  labels, number = fields.get('id2label'), fields.get('num_labels')
  if labels is not None and not isinstance(labels, dict):
    raise ValueError(f'{path}: id2label must be an object, got {labels!r}')
  if number is not None and (type(number) is not int or number < 1):
    raise ValueError(f'{path}: num_labels must be a positive integer, got {number!r}')
  return len(labels) if labels else number or 2


def _remembered(directory: str, fingerprint: str) -> str:
  """The folder of the tokenizer that parameters were trained with, if it is still there."""
  try:
    same = bool(directory) and tokenizers.is_same(tokenizers.load_tokenizer(directory), fingerprint)
  except ValueError:
    same = False
  return directory if same else ''


def resolve_model(
    model: configs.TransformerConfig, origin: Origin | None, *, overrides: Sequence[str] = ()
) -> configs.TransformerConfig:
  """The shape of the folder, computed as the config says.

  A config whose `vocab_size` is 0 describes a model that is drawn to fit a task: loaded
  parameters replace its shape. One that names its vocabulary means a particular published
  model, and the folder has to hold that one.

  Two fields may be overridden on the command line. `max_length` is no shape where positions
  are rotary. `tie_embeddings=False` gives a tied model a head of its own.

  Args:
    model: of the config.
    origin: the folder, or None: the model is drawn.
    overrides: config fields given on the command line, such as 'model.width'.

  Returns:
    A new config.

  Raises:
    ValueError: a field that names another shape than the folder's.
  """
  if origin is None:
    return dataclasses.replace(model)
  kept = {name: getattr(model, name) for name in configs.COMPUTE_FIELDS}
  rotary, unties = origin.model.positions == 'rope', not model.tie_embeddings
  if rotary and 'model.max_length' in overrides:
    kept['max_length'] = model.max_length
  if origin.model.tie_embeddings and unties and 'model.tie_embeddings' in overrides:
    kept['tie_embeddings'] = False
  for item in dataclasses.fields(model):
    ours, theirs = getattr(model, item.name), getattr(origin.model, item.name)
    if item.name in kept or ours == theirs or (rotary and item.name == 'max_length'):
      continue
    if model.vocab_size or f'model.{item.name}' in overrides:
      raise ValueError(
          f'config.model.{item.name} is {ours!r}, and {theirs!r} in {origin.directory}, which '
          f'decides the shape ({origin.field})'
      )
  return dataclasses.replace(origin.model, **kept)


def identity(tokenizer_fingerprint: str, model: configs.TransformerConfig) -> dict[str, Any]:
  """What parameters and tokens of a run mean; kept with them and compared on load.

  How the model is computed (rematerialisation, unrolling, blocks, dtypes) may differ.
  """
  shape = dataclasses.asdict(model)
  for name in configs.COMPUTE_FIELDS:
    del shape[name]
  return {'tokenizer': tokenizer_fingerprint, 'model': shape}


def about_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
  """What is kept of a tokenizer: `Origin.stop_ids`, `stop_tokens` and `kept_ids`."""
  kept = tokenizer.kept if isinstance(tokenizer, tokenizers.CompactTokenizer) else ()
  return {
      'stop_ids': list(tokenizer.stop_ids), 'stop_tokens': list(tokenizers.stop_tokens(tokenizer)),
      'kept_ids': list(kept),
  }
