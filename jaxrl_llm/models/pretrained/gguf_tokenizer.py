"""Builds the tokenizer files of a Hugging Face checkpoint from the metadata of a GGUF file.

Byte-level BPE (kind 'gpt2') becomes a tokenizer.json. Metadata only names the rule that splits
text into words: a rule that is not in `_SPLITS` raises an error. A SentencePiece model (kind
'llama') becomes a tokenizer.model. Roles of tokens and the chat template are in
tokenizer_config.json, stop ids in generation_config.json.
"""

import collections
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Types of tokens, the same as in SentencePiece models.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_PREFIX = 'tokenizer.ggml.'
_TEMPLATE, _TEMPLATES = 'tokenizer.chat_template', 'tokenizer.chat_templates'
# Names in tokenizer_config.json and in metadata.
_ROLES = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}
_STOPS = ('eos', 'eot', 'eom')  # The first ends demonstrations.
_SPACE = '\u2581'  # SentencePiece's symbol for a space.
_BPE = 2  # trainer_spec.model_type of a SentencePiece model.
_MAX_SCORE = 3e38  # Scores are float32.

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
  return {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
          'use_regex': use_regex}


def _split_by(digits: str) -> dict[str, Any]:
  """Returns the pre-tokenizer of Llama 3 and Qwen2, with at most `digits` digits in a word."""
  split = {'type': 'Split', 'pattern': {'Regex': _WORDS % digits}, 'behavior': 'Isolated',
           'invert': False}
  return {'type': 'Sequence', 'pretokenizers': [split, _byte_level(use_regex=False)]}


class _Split(NamedTuple):
  """Processing of text by one value of tokenizer.ggml.pre.

  Attributes:
    pre_tokenizer: splits text into words, as in tokenizer.json.
    normalizer: normalises text first; None for no change.
    ignore_merges: a word in the vocabulary is one token, even if merges do not produce it.
    adds_start: default of add_bos_token.
  """

  pre_tokenizer: dict[str, Any]
  normalizer: dict[str, Any] | None = None
  ignore_merges: bool = False
  adds_start: bool = False


_LLAMA3 = _Split(_split_by('{1,3}'), ignore_merges=True, adds_start=True)
_SPLITS = {
    'gpt-2': _Split(_byte_level(use_regex=True)),
    'smollm': _Split({'type': 'Sequence', 'pretokenizers': [
        {'type': 'Digits', 'individual_digits': True}, _byte_level(use_regex=True)]}),
    'llama-bpe': _LLAMA3, 'llama3': _LLAMA3, 'llama-v3': _LLAMA3,
    'qwen2': _Split(_split_by(''), normalizer={'type': 'NFC'}),
}


class TokenizerFiles(NamedTuple):
  """Files and fields of a tokenizer.

  Attributes:
    files: file contents by name.
    fields: special ids for config.json.
    size: largest id plus 1.
  """

  files: dict[str, bytes]
  fields: dict[str, Any]
  size: int


class _Vocabulary(NamedTuple):
  """Tokens by id, their types, and the ids of the roles in `_ROLES` and `_STOPS`."""

  tokens: list[str]
  types: list[int]
  ids: dict[str, int]


def read(metadata: Mapping[str, Any], path: pathlib.Path, *, model_type: str) -> TokenizerFiles:
  """Builds the tokenizer files.

  Args:
    metadata: metadata of the file.
    path: the file, for errors.
    model_type: model_type in config.json.

  Returns:
    The files.

  Raises:
    ValueError: one line: a field is missing, damaged or not supported.
  """
  kind = metadata.get(f'{_PREFIX}model')
  if kind not in ('gpt2', 'llama'):
    raise ValueError(f'{path}: {_PREFIX}model must be one of gpt2, llama, got {kind!r}')

  given = _Fields(metadata, path)
  vocabulary = _read_vocabulary(given)
  config: dict[str, Any] = {'clean_up_tokenization_spaces': False}
  config |= {
      f'{role}_token': vocabulary.tokens[vocabulary.ids[role]]
      for role in _ROLES if role in vocabulary.ids
  }
  if template := _read_template(given):
    config['chat_template'] = template
  if given.flag('add_eos_token', False):
    raise ValueError(f'{path}: {_PREFIX}add_eos_token must be false, got True')

  write = _write_bpe if kind == 'gpt2' else _write_sentencepiece
  files, more = write(given, vocabulary, model_type)
  stops = list(dict.fromkeys(vocabulary.ids[role] for role in _STOPS if role in vocabulary.ids))
  fields = {f'{role}_token_id': vocabulary.ids.get(role) for role in ('bos', 'pad')}
  fields = {name: number for name, number in fields.items() if number is not None}
  fields['eos_token_id'] = stops[0] if len(stops) == 1 else stops

  files['tokenizer_config.json'] = _json(config | more)
  files['generation_config.json'] = _json(fields)
  return TokenizerFiles(files, {'bos_token_id': None, **fields}, len(vocabulary.tokens))


class _Fields:
  """Metadata of the tokenizer, with errors that name the file and the field."""

  def __init__(self, metadata: Mapping[str, Any], path: pathlib.Path):
    self.metadata = metadata
    self.path = path

  def many(self, name: str, kind: type) -> list[Any]:
    """Returns an array of values of one type."""
    values = self.metadata.get(_PREFIX + name)
    if values is None:
      raise ValueError(f'{self.path} has no field {_PREFIX + name!r}')
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
      raise ValueError(f'{self.path}: {_PREFIX}{name} must be a list of {kind.__name__}')
    return values

  def flag(self, name: str, default: bool) -> bool:
    """Returns a boolean."""
    value = self.metadata.get(_PREFIX + name, default)
    if type(value) is not bool:
      raise ValueError(f'{self.path}: {_PREFIX}{name} must be of type bool, got {value!r}')
    return value


def _read_vocabulary(given: _Fields) -> _Vocabulary:
  """Reads tokens, types and ids."""
  tokens, types = given.many('tokens', str), given.many('token_type', int)
  if len(types) != len(tokens):
    raise ValueError(
        f'{given.path}: {_PREFIX}token_type must have one entry per token ({len(tokens)}), got '
        f'{len(types)}')
  if len(set(tokens)) < len(tokens):
    twice, _ = collections.Counter(tokens).most_common(1)[0]
    raise ValueError(f'{given.path}: duplicate token {twice!r} in {_PREFIX}tokens')

  ids = {}
  for role in dict.fromkeys((*_ROLES, *_STOPS)):
    name = f'{_PREFIX}{_ROLES.get(role, role)}_token_id'
    if name in given.metadata:
      number = given.metadata[name]
      if type(number) is not int or not 0 <= number < len(tokens):
        raise ValueError(f'{given.path}: {name} must be in [0, {len(tokens)}), got {number!r}')
      ids[role] = number

  if 'eos' not in ids:
    raise ValueError(f'{given.path} has no field {_PREFIX + "eos_token_id"!r}')
  return _Vocabulary(tokens, types, ids)


def _read_template(given: _Fields) -> str | list[dict[str, str]] | None:
  """Returns the chat template, or a list of named ones as in tokenizer_config.json."""
  names = given.metadata.get(_TEMPLATES, [])
  if not isinstance(names, list):
    raise ValueError(f'{given.path}: {_TEMPLATES} must be a list of str, got {names!r}')
  keys = {'default': _TEMPLATE} | {name: f'{_TEMPLATE}.{name}' for name in names}
  templates = {
      name: given.metadata[key] for name, key in keys.items() if key in given.metadata}

  for name, template in templates.items():
    if not isinstance(template, str):
      raise ValueError(f'{given.path}: {keys[name]} must be of type str, got {template!r}')
  if set(templates) <= {'default'}:
    return templates.get('default')
  return [{'name': name, 'template': template} for name, template in templates.items()]


def _write_bpe(
    given: _Fields, vocabulary: _Vocabulary, model_type: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Writes tokenizer.json; returns (files, entries of tokenizer_config.json)."""
  import tokenizers

  del model_type  # The same for all.
  name = given.metadata.get(f'{_PREFIX}pre')
  if name not in tuple(_SPLITS):
    raise ValueError(
        f'{given.path}: {_PREFIX}pre, which names the rule that splits text into words, must be '
        f'one of {", ".join(_SPLITS)}, got {name!r}')
  split = _SPLITS[name]

  added = [
      {'id': number, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
       'normalized': False, 'special': kind == CONTROL}
      for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types))
      if kind in (CONTROL, USER_DEFINED)
  ]
  document = {
      'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
      'normalizer': split.normalizer, 'pre_tokenizer': split.pre_tokenizer,
      'post_processor': _start(given, vocabulary, split.adds_start),
      'decoder': _byte_level(use_regex=True),
      'model': _bpe_model(given, vocabulary, ignore_merges=split.ignore_merges),
  }

  content = json.dumps(document, ensure_ascii=False)
  try:
    tokenizers.Tokenizer.from_str(content)
  except Exception as error:
    raise ValueError(
        f'{given.path}: the tokenizer is damaged: {" ".join(str(error).split())}') from None
  return {'tokenizer.json': content.encode()}, {'tokenizer_class': 'PreTrainedTokenizerFast'}


def _bpe_model(
    given: _Fields, vocabulary: _Vocabulary, *, ignore_merges: bool
) -> dict[str, Any]:
  """Returns the model of tokenizer.json; it has no unused tokens, which only fill the embedding."""
  merges = []
  for merge in given.many('merges', str):
    left, _, right = merge[1:].partition(' ')  # A token has at least one character.
    if not right:
      raise ValueError(
          f'{given.path}: {_PREFIX}merges must have two tokens and one space each, got {merge!r}')
    merges.append([merge[0] + left, right])

  ids = {
      token: number for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types))
      if kind != UNUSED
  }
  return {
      'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
      'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
      'ignore_merges': ignore_merges, 'vocab': ids, 'merges': merges,
  }


def _start(given: _Fields, vocabulary: _Vocabulary, default: bool) -> dict[str, Any] | None:
  """Returns the post-processor that puts the start token before a text; None for none."""
  if not given.flag('add_bos_token', default):
    return None
  if 'bos' not in vocabulary.ids:
    raise ValueError(f'{given.path} has no field {_PREFIX + "bos_token_id"!r}')

  number = vocabulary.ids['bos']
  text = vocabulary.tokens[number]
  start = {'SpecialToken': {'id': text, 'type_id': 0}}
  first, second = ({'Sequence': {'id': name, 'type_id': i}} for i, name in enumerate('AB'))
  return {
      'type': 'TemplateProcessing', 'single': [start, first], 'pair': [start, first, second],
      'special_tokens': {text: {'id': text, 'ids': [number], 'tokens': [text]}},
  }


def _write_sentencepiece(
    given: _Fields, vocabulary: _Vocabulary, model_type: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Writes tokenizer.model; returns (files, entries of tokenizer_config.json)."""
  import sentencepiece

  scores = given.many('scores', float)
  if len(scores) != len(vocabulary.tokens):
    raise ValueError(
        f'{given.path}: {_PREFIX}scores must have one entry per token '
        f'({len(vocabulary.tokens)}), got {len(scores)}')
  if not all(abs(score) < _MAX_SCORE for score in scores):
    raise ValueError(f'{given.path}: {_PREFIX}scores must be finite')

  merged = [score for score, token, kind in zip(scores, vocabulary.tokens, vocabulary.types)
            if kind == NORMAL and len(token) > 1]
  if len(merged) > 1 and len(set(merged)) == 1:
    raise ValueError(
        f'{given.path}: {_PREFIX}scores gives all tokens the same score, so that the order of '
        'merges is unknown')

  adds_space = given.flag('add_space_prefix', True)
  content = _model_proto(
      vocabulary, scores, adds_space=adds_space,
      removes_spaces=given.flag('remove_extra_whitespaces', False))
  try:
    sentencepiece.SentencePieceProcessor(model_proto=content)
  except (RuntimeError, OSError) as error:
    raise ValueError(
        f'{given.path}: the tokenizer is damaged: {" ".join(str(error).split())}') from None

  config = {
      'tokenizer_class': 'GemmaTokenizer' if model_type.startswith('gemma') else 'LlamaTokenizer',
      # Metadata does not say which; all recent checkpoints are like this.
      'legacy': False,
      'add_bos_token': given.flag('add_bos_token', True), 'add_eos_token': False,
  }
  if not adds_space:
    config['add_prefix_space'] = False
  return {'tokenizer.model': content}, config


def _model_proto(
    vocabulary: _Vocabulary, scores: Sequence[float], *, adds_space: bool, removes_spaces: bool
) -> bytes:
  """Writes a ModelProto; its field numbers are those of sentencepiece_model.proto."""
  types = list(vocabulary.types)
  if UNKNOWN not in types:
    types[vocabulary.ids.get('unk', 0)] = UNKNOWN

  pieces = []
  for token, score, kind in zip(vocabulary.tokens, scores, types):
    if kind == USER_DEFINED:  # llama.cpp writes spaces in these.
      token = token.replace(' ', _SPACE)
    pieces.append(_field(1, _field(1, token) + _field(2, score) + _field(3, kind)))

  trainer = _field(3, _BPE) + _field(4, len(types)) + _field(35, int(BYTE in types))
  ids = {'unk': types.index(UNKNOWN)} | {
      role: vocabulary.ids.get(role, -1) for role in ('bos', 'eos', 'pad')}
  for offset, (role, number) in enumerate(ids.items()):
    trainer += _field(40 + offset, number)
    trainer += _field(45 + offset, vocabulary.tokens[number] if number >= 0 else f'<no {role}>')

  normalizer = _field(1, 'identity') + _field(3, int(adds_space)) + _field(4, int(removes_spaces))
  return b''.join(pieces) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | float | str | bytes) -> bytes:
  """Encodes one field of a protocol buffer."""
  if isinstance(value, float):
    return _varint(number << 3 | 5) + struct.pack('<f', value)
  if isinstance(value, int):
    return _varint(number << 3) + _varint(value % 2**64)
  content = value.encode() if isinstance(value, str) else value
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes((*out, value))


def _json(document: Mapping[str, Any]) -> bytes:
  return (json.dumps(document, indent=2, ensure_ascii=False) + '\n').encode()
