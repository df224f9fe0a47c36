"""Exports the tokenizer of exported parameters in the format of transformers.

A tokenizer.json is copied with the files next to it. If there is none (GPT-2's or Qwen2's two
files, a SentencePiece model), one is written, because transformers would read such files as the
usual tokenizer of the model's family. In both cases the export says what ends a response:
eos_token in tokenizer_config.json, eos_token_id in generation_config.json and config.json.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl_llm.data import model_files, sentencepiece_export, tokenizer_files, tokenizers
from jaxrl_llm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.types import Tokenizer

_CONFIG, _MAP = 'tokenizer_config.json', 'special_tokens_map.json'
_GENERATION, _WHOLE = 'generation_config.json', 'tokenizer.json'
# Files made redundant by a written tokenizer.json.
_PARTS = ('vocab.json', 'merges.txt', 'encoder.json', 'vocab.bpe', 'added_tokens.json', _MAP)
_RARE = (' the', 'x\u200d  \x00</s>y')  # Texts that libraries encode differently.
_CLASS = 'PreTrainedTokenizerFast'  # Transformers 5 maps it to TokenizersBackend.


class Export(NamedTuple):
  """Files and fields written in addition to the parameters.

  Attributes:
    files: file contents by name.
    fields: fields of config.json, including the special ids.
    notes: notes for the user, one line each.
  """

  files: dict[str, bytes]
  fields: dict[str, Any]
  notes: list[str]


def of_tokenizer(
    tokenizer: Tokenizer, source: str | pathlib.Path, fields: Mapping[str, Any], *, model_type: str
) -> Export:
  """Exports a tokenizer as files and fields.

  Existing entries of the files and fields stay unchanged, unless they contradict the tokenizer.

  Args:
    tokenizer: the parameters' tokenizer, with their stop ids.
    source: the directory or file that it was loaded from.
    fields: known fields of config.json.
    model_type: model family of the export.

  Returns:
    The export.
  """
  source = pathlib.Path(source)
  folder = source if source.is_dir() else source.parent
  token_files = model_files.read(folder)
  files = _copied(source, folder)
  notes: list[str] = []

  written = {} if _WHOLE in files else _whole(tokenizer, token_files, notes)
  if written:
    files = {
        name: content for name, content in files.items()
        if name not in _PARTS and not name.endswith('.model')
    } | written
  elif isinstance(tokenizer, SentencePieceTokenizer):
    _rename_model(files)

  changes = _names(tokenizer, token_files, files, is_new=bool(written))
  if changes:
    names = token_files.names if written else {}
    files[_CONFIG] = _json({**_read(files, _CONFIG), **names, **changes})
    if 'eos_token' in changes and 'eos_token' in _read(files, _MAP):
      files[_MAP] = _json({**_read(files, _MAP), 'eos_token': changes['eos_token']})

  original = _read(files, _GENERATION) if _GENERATION in files else None
  fields, generation = special_ids(
      tokenizer.stop_ids, fields, original, pad_id=tokenizer.pad_id, start_ids=tokenizer.start_ids,
  )
  if generation != original:
    files |= generation_file(generation)

  if model_type == 'qwen2' and not _splits_as_qwen2(tokenizer):
    notes.append(
        "AutoTokenizer of transformers 5 splits words as Qwen2 does for every qwen2 model, unlike "
        "this tokenizer: load it with PreTrainedTokenizerFast.from_pretrained"
    )

  return Export(files, fields, notes)


def special_ids(
    stop_ids: tuple[int, ...], fields: Mapping[str, Any], generation: Mapping[str, Any] | None, *,
    pad_id: int | None = None, start_ids: tuple[int, ...] = (),
) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """Adds the stop ids to config.json and generation_config.json.

  Without them a model class uses its own defaults. transformers stops at the ids in
  generation_config.json if that file exists, otherwise at those in config.json.

  Args:
    stop_ids: ids that end a response.
    fields: fields of config.json.
    generation: fields of generation_config.json; None if there is none.
    pad_id: pad id for a config.json that has none; None if unknown.
    start_ids: ids put before plain text, for a config.json that has no bos id.

  Returns:
    (fields, generation): unchanged if they agree with the stop ids; a `generation` of None means
    that no file is needed.
  """
  eos_ids = (fields if generation is None else generation).get('eos_token_id')
  eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
  agrees = all(type(number) is int for number in eos_ids) and set(eos_ids) == set(stop_ids)
  if agrees and fields.get('eos_token_id') is not None:
    return dict(fields), None if generation is None else dict(generation)

  stops = {'eos_token_id': stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)}
  others = {'bos_token_id': start_ids[0] if start_ids else None}
  others |= {} if pad_id is None else {'pad_token_id': pad_id}
  known = {name: number for name, number in others.items() if number is not None}

  if not agrees:
    generation = {**known, **(generation or {}), **stops}
  return {**others, **fields, **stops}, None if generation is None else dict(generation)


def generation_file(generation: Mapping[str, Any] | None) -> dict[str, bytes]:
  """Returns {file name: content} of generation_config.json; {} for None."""
  return {} if generation is None else {_GENERATION: _json(generation)}


def _copied(source: pathlib.Path, folder: pathlib.Path) -> dict[str, bytes]:
  """Reads the tokenizer's files and those next to it."""
  paths = {
      path.name: path for pattern in huggingface.TOKENIZER_FILES for path in folder.glob(pattern)
  }
  if source != folder:  # If there are several tokenizers, the named one.
    whole = _WHOLE if source.suffix == '.json' else source.name
    others = {*_PARTS, _WHOLE} - {'added_tokens.json', _MAP}
    paths = {
        name: path for name, path in paths.items()
        if name not in others and not name.endswith('.model')
    } | {whole: source}
  return {name: model_files.read_bytes(path) for name, path in sorted(paths.items())}


def _whole(
    tokenizer: Tokenizer, token_files: model_files.TokenFiles, notes: list[str]
) -> dict[str, bytes]:
  """Makes a missing tokenizer.json; {} if transformers reads the existing files."""
  if isinstance(tokenizer, tokenizers.HuggingFaceTokenizer):
    backend = tokenizer.backend
  elif token_files.config.get('tokenizer_class') not in (None, _CLASS, 'TokenizersBackend'):
    return {}  # A class for SentencePiece models.
  else:
    backend = sentencepiece_export.to_backend(tokenizer)
    if backend is None:
      notes.append(
          'transformers has no equivalent of this SentencePiece model: AutoTokenizer gives other '
          'ids; use the sentencepiece library'
      )
      return {}
    encode = lambda text: backend.encode(text, add_special_tokens=False).ids
    if any(encode(text) != tokenizer.encode(text) for text in _RARE):
      notes.append(
          'transformers encodes some texts differently from this SentencePiece model: those that '
          'begin with a space or contain control characters'
      )

  texts = {number: tokenizer.token(number) for number in tokenizer.start_ids}
  return {_WHOLE: tokenizer_files.to_json(backend, texts).encode()}


def _rename_model(files: dict[str, bytes]) -> None:
  """Gives a SentencePiece model the file name that transformers looks for."""
  models = [name for name in files if name.endswith('.model')]
  if len(models) == 1:
    files['tokenizer.model'] = files.pop(models[0])


def _names(
    tokenizer: Tokenizer, token_files: model_files.TokenFiles, files: Mapping[str, bytes], *,
    is_new: bool,
) -> dict[str, Any]:
  """Returns the entries of tokenizer_config.json that are missing or wrong."""
  changes: dict[str, Any] = {}
  if is_new or _CONFIG not in files and not isinstance(tokenizer, SentencePieceTokenizer):
    changes['tokenizer_class'] = _CLASS
    if isinstance(tokenizer, SentencePieceTokenizer):
      changes['unk_token'] = tokenizer.token(tokenizer.processor.unk_id())

  # A changed eos_token would change the text of a template that writes it.
  template = json.dumps(token_files.config.get('chat_template', '')).encode()
  in_use = b'eos_token' in template + files.get('chat_template.jinja', b'')
  first = tokenizer.token(tokenizer.stop_ids[0])
  if 'eos_token' not in token_files.names or not in_use and token_files.names['eos_token'] != first:
    changes['eos_token'] = first

  if is_new or changes:  # Without a named pad token, `pad_id` pads.
    changes['pad_token'] = token_files.names.get('pad_token') or tokenizer.token(tokenizer.pad_id)
  return changes


def _splits_as_qwen2(tokenizer: Tokenizer) -> bool:
  return isinstance(tokenizer, tokenizers.HuggingFaceTokenizer) and (
      tokenizer_files.splits_like_qwen2(tokenizer.backend))


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
  return json.loads(files[name]) if name in files else {}


def _json(document: Mapping[str, Any]) -> bytes:
  return (json.dumps(document, indent=2, ensure_ascii=False) + '\n').encode()
