"""Reads a policy or a value function from any directory that holds one, without a config."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, value
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import metrics
from jaxrl_llm.types import Params, Tokenizer


class StoredModel(NamedTuple):
  """Parameters to convert.

  Attributes:
    source: the checkpoint source.
    model: its shape, and the dtype of its parameters.
    role: 'policy', or 'value' for a sequence classifier.
    num_outputs: rows of a value head.
    hugging_face: {'model_type', 'fields', 'directory'} of the Hugging Face checkpoint that it is
      or came from; {} if there is none.
  """

  source: checkpoint_sources.CheckpointSource
  model: configs.TransformerConfig
  role: str
  num_outputs: int
  hugging_face: dict[str, Any]


def read(directory: str, *, field: str, tokenizer_named: bool = False) -> StoredModel:
  """Reads a directory of parameters; raises a one-line ValueError if it cannot be read.

  Takes the arguments of `checkpoint_sources.read`.
  """
  source = checkpoint_sources.read(directory, field=field, tokenizer_named=tokenizer_named)
  hugging_face = source.hugging_face
  role = hugging_face.get('role', 'policy')
  if role not in ('policy', 'value'):
    raise UsageError(
        f'{directory} is a {role}: only language models and sequence classifiers are supported'
    )
  model = dataclasses.replace(source.model, param_dtype=stored_dtype(source))
  return StoredModel(source, model, role, hugging_face.get('num_outputs', 1), hugging_face)


def stored_dtype(source: checkpoint_sources.CheckpointSource) -> str:
  """Returns the dtype of the stored parameters: 'bfloat16', or 'float32' for any other."""
  if source.checkpoint:
    fields = source.checkpoint.fields
    dtypes = {fields.get('dtype') or fields.get('torch_dtype')}
  else:
    document = metrics.read_json(source.directory / 'document' / 'metadata')
    dtypes = {leaf['dtype'] for leaf in document['tree'].values()}
  return 'bfloat16' if dtypes == {'bfloat16'} else 'float32'


def load(stored: StoredModel) -> Params:
  """Loads the parameters into host memory, in their own dtype."""
  if stored.role == 'value':
    model = value.make(stored.model, num_outputs=stored.num_outputs)
  else:
    model = policy_lib.make(stored.model)
  host = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host),
      jax.eval_shape(model.init, jax.random.key(0)),
  )
  return stored.source.load(abstract)


def find_tokenizer(stored: StoredModel, directory: str) -> tuple[str, Tokenizer | None]:
  """Finds the tokenizer that belongs to parameters.

  Args:
    stored: the parameters.
    directory: directory of the tokenizer, or of the full tokenizer that it is a part of; '' looks
      next to the parameters, or next to the checkpoint that they came from.

  Returns:
    (its directory, the tokenizer with the stop ids of the parameters), or ('', None) if none is
    known.

  Raises:
    ValueError: if `directory` holds no tokenizer, the parameters were trained with another one,
      or it has more tokens than the embedding has rows.
  """
  source = stored.source
  folder = directory or source.tokenizer_dir
  if not folder:
    return '', None

  try:
    tokenizer = tokenizers.load_tokenizer(folder)
  except ValueError:
    if directory:
      raise
    return '', None  # The checkpoint had none, or it is gone.

  if source.kept_ids and isinstance(tokenizer, tokenizers.HuggingFaceTokenizer):
    with contextlib.suppress(ValueError):  # Another base: reported below.
      tokenizer = tokenizers.restore_compact(tokenizer, source.kept_ids)

  other = source.tokenizer and not tokenizers.is_same(tokenizer, source.tokenizer)
  if not source.checkpoint and other:
    raise UsageError(
        f'{source.directory} was trained with another tokenizer ({source.tokenizer}) than that in '
        f'{folder} ({tokenizer.fingerprint}): give its own (--tokenizer)'
    )

  if tokenizer.vocab_size > stored.model.vocab_size:
    raise UsageError(
        f'the tokenizer in {folder} has {tokenizer.vocab_size} ids and the embedding in '
        f'{source.directory} only {stored.model.vocab_size} rows (--tokenizer)'
    )
  return str(folder), source.stopping(tokenizer)
