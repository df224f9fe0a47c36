r"""Converts a Hugging Face checkpoint to a parameter directory of this project, or back.

    python -m experiments.convert --from=HUGGING_FACE_DIR --to=DIR
    python -m experiments.convert --from=FILE.gguf --to=HUGGING_FACE_DIR
    python -m experiments.convert --from=WORKDIR/trained --to=DIR --model_type=qwen2 \
        --tokenizer=DIR_OF_THE_TOKENIZER

The format of --from is detected; --format sets the output format (by default the other one). A
directory of this project that came from a checkpoint records its family, its config.json and the
path of its tokenizer; otherwise pass --model_type and --tokenizer. The write to --to is atomic.

A GGUF file of llama.cpp is dequantised, and becomes a Hugging Face checkpoint with its tokenizer
and chat template. --tokenizer replaces a tokenizer that cannot be read from the file.
"""

import dataclasses
import functools
import pathlib

import jax
from absl import flags

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import gguf, huggingface
from jaxrl_llm.runs import checkpoint_sources, conversion, export, launch
from jaxrl_llm.runs.command_line import UsageError
from jaxrl_llm.training import checkpoints
from jaxrl_llm.types import Tokenizer

FORMATS = ('hugging_face', 'orbax')
DTYPES = ('float32', 'bfloat16')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  choice = functools.partial(flags.DEFINE_enum, flag_values=values)
  text('from', '', 'directory or GGUF file to convert')
  text('to', '', 'output directory, new or empty')
  choice('format', None, FORMATS, 'output format; by default the one that --from does not have')
  text('model_type', '', "model_type of the output's config.json; by default that of --from")
  choice('dtype', None, DTYPES, 'dtype of the output; by default that of --from (float32 for '
         'float16 and quantised tensors)')
  text('tokenizer', '', 'directory of the tokenizer of the parameters; its files are copied to a '
       'Hugging Face output')


def main(values: flags.FlagValues) -> None:
  """Converts the parameters given by the flags."""
  directory, target = values['from'].value, pathlib.Path(values.to)
  if not directory or not values.to:
    raise UsageError('--from=DIR and --to=DIR are required')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UsageError(f'--to must be a new or empty directory, got {values.to!r}')

  if gguf.is_gguf(directory):
    convert_gguf(values, directory, target)
    return

  stored = conversion.read(directory, field='--from', tokenizer_named=bool(values.tokenizer))

  output_format = values.format or ('orbax' if stored.source.checkpoint else 'hugging_face')
  dtype = values.dtype or stored.model.param_dtype
  model_type = values.model_type or stored.hugging_face.get('model_type', '')
  if output_format == 'hugging_face' and not model_type:
    known = sorted(name for family in huggingface.FAMILIES for name in family.MODEL_TYPES)
    raise UsageError(
        f'{directory} does not record its model family: --model_type must be one of '
        f'{", ".join(known)}'
    )

  tokenizer_dir, tokenizer = conversion.find_tokenizer(stored, values.tokenizer)
  print(f'reading {directory} ...', flush=True)
  params = conversion.load(stored)

  if output_format == 'hugging_face':
    exported = export_tokenizer(stored, tokenizer_dir, tokenizer, model_type=model_type)
    huggingface.save(
        target, whole_context(stored), params, model_type=model_type, dtype=dtype,
        role=stored.role, fields=exported.fields, files=exported.files,
    )
    for note in exported.notes:
      print(note)
  else:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    source = stored.source
    metadata = checkpoint_sources.identity(source.tokenizer, stored.model)
    metadata |= {
        name: list(getattr(source, name)) for name in checkpoint_sources.TOKENIZER_METADATA}
    if tokenizer:
      metadata |= {
          'tokenizer': tokenizer.fingerprint, **checkpoint_sources.tokenizer_metadata(tokenizer)}

    if stored.hugging_face:
      changes = {'model_type': model_type}
      if tokenizer_dir:
        changes['directory'] = str(pathlib.Path(tokenizer_dir).absolute())
      metadata['hugging_face'] = stored.hugging_face | changes
    checkpoints.save_params(target, params, metadata)

  print(f'{directory} -> {target}: {output_format}, {stored.role}, {dtype}')


def convert_gguf(values: flags.FlagValues, path: str, target: pathlib.Path) -> None:
  """Converts a GGUF file to a Hugging Face checkpoint."""
  model = gguf.read(path)
  if values.format not in (None, 'hugging_face'):
    raise UsageError(f'--format must be hugging_face for a GGUF file, got {values.format}')
  if values.model_type not in ('', model.model_type):
    raise UsageError(f'--model_type must be {model.model_type} for {path}, got {values.model_type}')

  if values.tokenizer:
    tokenizer = tokenizers.load_tokenizer(values.tokenizer)
    if tokenizer.vocab_size > model.config.vocab_size:
      raise UsageError(
          f'the tokenizer in {values.tokenizer} has {tokenizer.vocab_size} ids and the embedding '
          f'in {path} only {model.config.vocab_size} rows (--tokenizer)')
    exported = export.of_tokenizer(tokenizer, values.tokenizer, {}, model_type=model.model_type)
  else:
    try:
      files = gguf.read_tokenizer(model)
    except ValueError as error:
      raise UsageError(f'{error} (--tokenizer can name another tokenizer)') from error
    exported = export.Export(files.files, files.fields, [])

  print(f'reading {path} ...', flush=True)
  dtype = values.dtype or model.dtype
  gguf.save(target, model, dtype=dtype, fields=exported.fields, files=exported.files)
  for note in exported.notes:
    print(note)
  print(f'{path} -> {target}: hugging_face, policy, {dtype}')


def export_tokenizer(
    stored: conversion.StoredModel, directory: str, tokenizer: Tokenizer | None, *, model_type: str
) -> export.Export:
  """Exports the tokenizer's files and config fields, or without a tokenizer at least stop ids."""
  original = stored.hugging_face
  fields = original.get('fields', {}) if original.get('model_type') == model_type else {}
  reduced = isinstance(tokenizer, tokenizers.CompactTokenizer)
  if tokenizer and not reduced:
    return export.of_tokenizer(tokenizer, directory, fields, model_type=model_type)
  reason = 'transformers cannot read a reduced one' if reduced else 'none is known (--tokenizer)'
  notes, files = [f'no tokenizer was copied: {reason}'], {}
  if stored.source.stop_ids:
    fields, generation = export.special_ids(stored.source.stop_ids, fields, None)
    files = export.generation_file(generation)
  return export.Export(files, fields, notes)


def whole_context(stored: conversion.StoredModel) -> configs.TransformerConfig:
  """Restores the context length of the checkpoint if a run with RoPE used a shorter one."""
  known = stored.hugging_face.get('fields', {}).get('max_position_embeddings')
  if stored.model.positions != 'rope' or known is None:
    return stored.model
  return dataclasses.replace(stored.model, max_length=max(known, stored.model.max_length))


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
