r"""Converts parameters: a Hugging Face checkpoint to a folder of this project's, or back.

    python -m experiments.convert --from=HUGGING_FACE_DIR --to=DIR
    python -m experiments.convert --from=WORKDIR/trained --to=DIR --model_type=qwen2 \
        --tokenizer=DIR_OF_THE_TOKENIZER

What --from is is found out, --format says what is written (by default the other one). A folder
of this project's that came from a checkpoint remembers its family, its config.json and where its
tokenizer lies; otherwise --model_type and --tokenizer say so. All of --to is written or nothing.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments import launch, origins, tokenizer_export
from experiments.command_line import UsageError
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, value
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.training import checkpoints
from jaxrl_llm.types import Params, Tokenizer

FORMATS = ('hugging_face', 'orbax')
DTYPES = ('float32', 'bfloat16')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  choice = functools.partial(flags.DEFINE_enum, flag_values=values)
  text('from', '', 'the folder that is read.')
  text('to', '', 'the folder that is written: new, or empty.')
  choice('format', None, FORMATS, 'what is written; by default what --from is not.')
  text('model_type', '', "the family that is written, as in config.json; by default --from's.")
  choice('dtype', None, DTYPES, "of what is written; by default --from's (float32 for float16).")
  text('tokenizer', '', 'a folder whose tokenizer belongs to the parameters; for Hugging Face its '
       'files are copied.')


class Source(NamedTuple):
  """What is converted.

  Attributes:
    origin: where it lies.
    model: its shape, and the dtype of its parameters.
    role: 'policy', or 'value' for a sequence classifier.
    num_outputs: rows of a value head.
    hugging_face: {'model_type', 'fields', 'directory'} of the checkpoint that it is, or came
      from; {} if it never was one.
  """

  origin: origins.Origin
  model: configs.TransformerConfig
  role: str
  num_outputs: int
  hugging_face: dict[str, Any]


def main(values: flags.FlagValues) -> None:
  """Converts what the flags name."""
  directory, target = values['from'].value, pathlib.Path(values.to)
  if not directory or not values.to:
    raise UsageError('--from=DIR and --to=DIR are required')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UsageError(f'--to must be a new or an empty folder, got {values.to!r}')
  source = read(directory, field='--from', tokenizer_named=bool(values.tokenizer))
  written = values.format or ('orbax' if source.origin.checkpoint else 'hugging_face')
  dtype = values.dtype or source.model.param_dtype
  model_type = values.model_type or source.hugging_face.get('model_type', '')
  if written == 'hugging_face' and not model_type:
    known = sorted(name for family in huggingface.FAMILIES for name in family.MODEL_TYPES)
    raise UsageError(
        f'{directory} does not say which family it is: --model_type must be one of '
        f'{", ".join(known)}'
    )
  tokenizer_dir, tokenizer = find_tokenizer(source, values.tokenizer)
  print(f'reading {directory} ...', flush=True)
  params = load(source)
  if written == 'hugging_face':
    beside = export_tokenizer(source, tokenizer_dir, tokenizer, model_type=model_type)
    huggingface.save(
        target, whole_context(source), params, model_type=model_type, dtype=dtype,
        role=source.role, fields=beside.fields, files=beside.files,
    )
    for note in beside.notes:
      print(note)
  else:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    origin = source.origin
    metadata = origins.identity(origin.tokenizer, source.model)
    metadata |= {name: list(getattr(origin, name)) for name in origins.ABOUT_TOKENIZER}
    if tokenizer:
      metadata |= {'tokenizer': tokenizer.fingerprint, **origins.about_tokenizer(tokenizer)}
    if source.hugging_face:
      kept = {'model_type': model_type}
      if tokenizer_dir:
        kept['directory'] = str(pathlib.Path(tokenizer_dir).absolute())
      metadata['hugging_face'] = source.hugging_face | kept
    checkpoints.save_params(target, params, metadata)
  print(f'{directory} -> {target}: {written}, {source.role}, {dtype}')


def export_tokenizer(
    source: Source, directory: str, tokenizer: Tokenizer | None, *, model_type: str
) -> tokenizer_export.Export:
  """What is written beside the parameters; without a tokenizer at least what ends a response."""
  about = source.hugging_face
  fields = about.get('fields', {}) if about.get('model_type') == model_type else {}
  reduced = isinstance(tokenizer, tokenizers.CompactTokenizer)
  if tokenizer and not reduced:
    return tokenizer_export.of_tokenizer(tokenizer, directory, fields, model_type=model_type)
  why = 'transformers cannot read a reduced one' if reduced else 'none is known (--tokenizer)'
  notes, files = [f'no tokenizer was copied: {why}'], {}
  if source.origin.stop_ids:
    fields, generation = tokenizer_export.special_ids(source.origin.stop_ids, fields, None)
    files = tokenizer_export.generation_file(generation)
  return tokenizer_export.Export(files, fields, notes)


def whole_context(source: Source) -> configs.TransformerConfig:
  """The model with the context of its checkpoint, where a run used less of rotary positions."""
  known = source.hugging_face.get('fields', {}).get('max_position_embeddings')
  if source.model.positions != 'rope' or known is None:
    return source.model
  return dataclasses.replace(source.model, max_length=max(known, source.model.max_length))


def read(directory: str, *, field: str, tokenizer_named: bool = False) -> Source:
  """Finds out what lies in a folder; ValueError with one line if nothing that can be read.

  Arguments as of `origins.read`.
  """
  origin = origins.read(directory, field=field, tokenizer_named=tokenizer_named)
  about = origin.hugging_face
  role = about.get('role', 'policy')
  if role not in ('policy', 'value'):
    raise UsageError(
        f'{directory} holds a {role}: only language models and sequence classifiers are converted'
    )
  model = dataclasses.replace(origin.model, param_dtype=stored_dtype(origin))
  return Source(origin, model, role, about.get('num_outputs', 1), about)


def stored_dtype(origin: origins.Origin) -> str:
  """The dtype of the parameters in a folder: 'bfloat16', or 'float32' for any other."""
  if origin.checkpoint:
    fields = origin.checkpoint.fields
    found = {fields.get('dtype') or fields.get('torch_dtype')}
  else:
    document = json.loads((origin.directory / 'document' / 'metadata').read_bytes())
    found = {leaf['dtype'] for leaf in document['tree'].values()}
  return 'bfloat16' if found == {'bfloat16'} else 'float32'


def load(source: Source) -> Params:
  """The parameters in main memory, in their own dtype."""
  if source.role == 'value':
    model = value.make(source.model, num_outputs=source.num_outputs)
  else:
    model = policy_lib.make(source.model)
  place = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      jax.eval_shape(model.init, jax.random.key(0)),
  )
  return source.origin.load(abstract)


def find_tokenizer(source: Source, directory: str) -> tuple[str, Tokenizer | None]:
  """The tokenizer that belongs to parameters.

  Args:
    source: the parameters.
    directory: where it lies, or where that lies of which it is a part; '' looks for it: beside
      the parameters, or beside the checkpoint that they came from.

  Returns:
    (its folder, the tokenizer with the stop ids of the parameters), or ('', None) where none is
    known.

  Raises:
    ValueError: `directory` holds no tokenizer, what was found is another one than the parameters
      were trained with, or it has more tokens than the embedding has rows.
  """
  origin = source.origin
  found = directory or origin.tokenizer_dir
  if not found:
    return '', None
  try:
    tokenizer = tokenizers.load_tokenizer(found)
  except ValueError:
    if directory:
      raise
    return '', None  # None lay beside the checkpoint, or it is gone.
  if origin.kept_ids and isinstance(tokenizer, tokenizers.HuggingFaceTokenizer):
    with contextlib.suppress(ValueError):  # Of another base: said below.
      tokenizer = tokenizers.restore_compact(tokenizer, origin.kept_ids)
  other = origin.tokenizer and not tokenizers.is_same(tokenizer, origin.tokenizer)
  if not origin.checkpoint and other:
    raise UsageError(
        f'{origin.directory} was trained with another tokenizer ({origin.tokenizer}) than lies in '
        f'{found} ({tokenizer.fingerprint}): give its own (--tokenizer)'
    )
  if tokenizer.vocab_size > source.model.vocab_size:
    raise UsageError(
        f'the tokenizer in {found} has {tokenizer.vocab_size} ids and the embedding in '
        f'{origin.directory} only {source.model.vocab_size} rows (--tokenizer)'
    )
  return str(found), origin.stopping(tokenizer)


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
