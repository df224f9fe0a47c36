"""Where parameters come from: a folder of this project's, or a Hugging Face checkpoint.

The folder decides the model's shape; how it is computed stays with the run.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.training import checkpoints
from jaxrl_llm.types import Params

_TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'encoder.json', '*.model')


class Origin(NamedTuple):
  """A folder of parameters, read but not loaded.

  Attributes:
    directory: the folder.
    model: the shape of what lies there; computed as by default.
    tokenizer: its tokenizer's fingerprint; '' for a checkpoint without one.
    checkpoint: what config.json says, or None for a folder of this project's.
    field: the config field that named the folder, for errors.
  """

  directory: pathlib.Path
  model: configs.TransformerConfig
  tokenizer: str
  checkpoint: huggingface.Checkpoint | None
  field: str

  @property
  def tokenizer_dir(self) -> str:
    """The folder itself where a tokenizer lies in it, else ''."""
    return str(self.directory) if self.checkpoint and self.tokenizer else ''

  def describe(self) -> str:
    """One phrase for the terminal."""
    kind = self.checkpoint.model_type if self.checkpoint else 'of this project'
    return f'from {self.directory} ({kind})'

  @property
  def hugging_face(self) -> dict[str, Any]:
    """What is kept with parameters that came from a checkpoint, so that they can go back.

    {'model_type', 'fields', 'role', 'num_outputs', 'directory'}; {} if none ever did.
    """
    if not self.checkpoint:
      return checkpoints.read_metadata(self.directory).get('hugging_face', {})
    fields = self.checkpoint.fields
    labels = fields.get('id2label')
    return {
        'model_type': self.checkpoint.model_type, 'fields': fields, 'role': self.checkpoint.role,
        # Two where config.json does not say, as transformers has it.
        'num_outputs': len(labels) if labels else int(fields.get('num_labels', 2)),
        'directory': str(self.directory.absolute()),
    }

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
    return checkpoints.load_params(self.directory, abstract_params, cast=True)[0]

  def check_tokenizer(self, fingerprint: str, *, of: str) -> None:
    """Raises ValueError if the folder's tokenizer is known and is another one."""
    if self.tokenizer not in ('', fingerprint):
      raise ValueError(
          f'the tokenizer of {self.directory} ({self.tokenizer}) is not that of {of} '
          f'({fingerprint}) ({self.field}; config.task.tokenizer_dir, where a task has one)'
      )


def read(directory: str, *, field: str) -> Origin:
  """Finds out what lies in a folder.

  Args:
    directory: written by `checkpoints.save_params` (WORKDIR/params, WORKDIR/trained), or a
      Hugging Face checkpoint (config.json and *.safetensors).
    field: the config field that names it, for errors.

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
      fingerprint = tokenizers.load_tokenizer(path).fingerprint
    return Origin(path, checkpoint.config, fingerprint, checkpoint, field)
  metadata = checkpoints.read_metadata(path)
  known = {item.name for item in dataclasses.fields(configs.TransformerConfig)}
  model = configs.TransformerConfig(
      **{name: value for name, value in metadata.get('model', {}).items() if name in known}
  )
  return Origin(path, model, str(metadata.get('tokenizer', '')), None, field)


def resolve_model(
    model: configs.TransformerConfig, origin: Origin | None, *, overrides: Sequence[str] = ()
) -> configs.TransformerConfig:
  """The shape of the folder, computed as the config says.

  A config whose `vocab_size` is 0 describes a model that is drawn to fit a task: loaded
  parameters replace its shape. One that names its vocabulary means a particular published
  model, and the folder has to hold that one.

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
  shape = {
      item.name: (getattr(model, item.name), getattr(origin.model, item.name))
      for item in dataclasses.fields(model) if item.name not in configs.COMPUTE_FIELDS
  }
  for name, (ours, theirs) in shape.items():
    if ours != theirs and (model.vocab_size or f'model.{name}' in overrides):
      raise ValueError(
          f'config.model.{name} is {ours!r}, and {theirs!r} in {origin.directory}, which decides '
          f'the shape ({origin.field})'
      )
  return dataclasses.replace(
      origin.model, **{name: getattr(model, name) for name in configs.COMPUTE_FIELDS}
  )


def identity(tokenizer_fingerprint: str, model: configs.TransformerConfig) -> dict[str, Any]:
  """What parameters and tokens of a run mean; kept with them and compared on load.

  How the model is computed (rematerialisation, unrolling, blocks, dtypes) may differ.
  """
  shape = dataclasses.asdict(model)
  for name in configs.COMPUTE_FIELDS:
    del shape[name]
  return {'tokenizer': tokenizer_fingerprint, 'model': shape}
