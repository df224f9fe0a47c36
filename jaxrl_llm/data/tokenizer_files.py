"""Reads the tokenizers that the `tokenizers` library supports: tokenizer.json and byte-level BPE.

The files next to it (`model_files`) also define added tokens, stop tokens, the padding token and
the start token of a plain text.

A tokenizer.json is used as written, with one exception, which transformers also makes: a
LlamaTokenizer adds SentencePiece's space at the start of a text only, and not after every special
token, unless tokenizer_config.json has `"legacy": true`.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.data import model_files

# Qwen2's pre-tokenization, which splits text into the pieces that merges apply to: contractions,
# letters with at most one leading symbol, single digits, symbols, line breaks, spaces.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_END_OF_TEXT = '<|endoftext|>'
# Tokens after the 151,643 entries of Qwen2's vocab.json, which does not contain them.
_QWEN2_SPECIAL = (_END_OF_TEXT, '<|im_start|>', '<|im_end|>')
SPACE = '\u2581'  # SentencePiece's symbol for a space.
REPLACEMENT = '\ufffd'  # The text of an unused id.


class Loaded(NamedTuple):
  """A tokenizer of the `tokenizers` library with the roles of its ids.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    stop_ids: ids that end a response; the first ends demonstrations.
    pad_id: padding id.
    start_ids: ids at the start of a plain text.
    source_hash: hash of everything that `backend` was built from.
    ids_hash: the same without repeated declarations of existing tokens, which change no id.
  """

  backend: Any
  stop_ids: tuple[int, ...]
  pad_id: int
  start_ids: tuple[int, ...]
  source_hash: str
  ids_hash: str


def stop_and_pad(
    files: model_files.TokenFiles,
    id_of: Callable[[str], int | None],
    size: int,
    *,
    stop_tokens: Sequence[str] | None = None,
    pad_token: str | None = None,
    default_stops: Sequence[str] = (),
) -> tuple[tuple[int, ...], int]:
  """Returns the stop ids and the padding id.

  Responses end with the eos_token, which comes first, and with every id that
  generation_config.json lists (config.json if it lists none). If neither lists
  any, as in encoders, the sep_token ends a text. The padding id is that of the pad_token, or
  the first stop id if there is no pad_token.

  Args:
    files: the files next to the tokenizer.
    id_of: maps the text of a token to its id, or None if it is not a token.
    size: largest id plus 1.
    stop_tokens: overrides the stop tokens.
    pad_token: overrides the padding token.
    default_stops: stop tokens if tokenizer_config.json has no eos_token.

  Returns:
    (stop ids without duplicates, padding id).

  Raises:
    ValueError: a named token does not exist, or there is no stop token.
  """

  def known(token: str) -> int:
    number = id_of(token)
    if number is None:
      raise ValueError(f'token {token!r} is not in the vocabulary of {files.directory}')
    return number

  if stop_tokens is None:
    named = [files.names['eos_token']] if 'eos_token' in files.names else default_stops
    stops = [*map(known, named), *files.model_stop_ids]
    if not stops and 'sep_token' in files.names:
      stops = [known(files.names['sep_token'])]

    outside = [token for token in stops if token >= size]
    if outside:
      raise ValueError(
          f'{files.directory / files.stop_file}: eos_token_id must be in [0, {size}), the ids of '
          f'the tokenizer, got {outside[0]}'
      )

    if not stops:
      raise ValueError(
          f'{files.directory} defines no token that ends a response: tokenizer_config.json must '
          "have an 'eos_token', or generation_config.json an 'eos_token_id'"
      )
  elif not stop_tokens:
    raise ValueError('stop_tokens must have at least one token, got none')
  else:
    stops = [known(token) for token in stop_tokens]

  filler = pad_token or files.names.get('pad_token')
  return tuple(dict.fromkeys(stops)), known(filler) if filler else stops[0]


def check_text(text: str) -> None:
  """Raises ValueError if `text` contains half a surrogate pair, as from broken JSON."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
        f'text must be Unicode, got half a surrogate pair, {text[error.start]!r}, at character '
        f'{error.start}'
    ) from None


def cover_empty(offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """Gives a token without characters (the first bytes of a character) the next token's range."""
  covered = list(offsets)
  for index in range(len(covered) - 2, -1, -1):
    begin, end = covered[index]
    if begin == end:
      covered[index] = covered[index + 1]
  return covered


def from_tokenizer_json(
    path: pathlib.Path, *, stop_tokens: Sequence[str] | None, pad_token: str | None
) -> Loaded:
  """Loads a tokenizer.json and the files next to it; raises a one-line ValueError if damaged."""
  import tokenizers

  files = model_files.read(path.parent)
  content = model_files.read_bytes(path)
  try:
    backend = tokenizers.Tokenizer.from_str(content.decode())
  except Exception as error:
    raise ValueError(
        f'{path} is not a complete tokenizer.json: {model_files.one_line(error)}'
    ) from None

  # A file may have been saved during use, with truncation or padding enabled.
  backend.no_truncation()
  backend.no_padding()
  # The post-processor decides how a text starts, regardless of add_bos_token.
  example = backend.encode('The 0')
  start_ids = tuple(example.ids[: [*example.special_tokens_mask, 0].index(0)])

  scheme = _llama_scheme(files, content)
  if scheme:
    _write_spaces(backend, scheme)

  new = _add_tokens(backend, files)
  stop_ids, pad_id = stop_and_pad(
      files, backend.token_to_id, size_of(backend), stop_tokens=stop_tokens, pad_token=pad_token
  )
  hashes = _hashes(files, new, _digest(content), scheme)

  return Loaded(backend, stop_ids, pad_id, start_ids, *hashes)


def continuing(backend: Any) -> Any | None:
  """Returns a copy of `backend` that adds no leading space; None if `backend` adds none."""
  import tokenizers

  state = json.loads(backend.to_str())
  parts = {name: _without_front(state[name]) for name in ('normalizer', 'pre_tokenizer')}
  if all(state[name] == part for name, part in parts.items()):
    return None
  return tokenizers.Tokenizer.from_str(json.dumps(state | parts))


def _without_front(part: Any) -> Any:
  """Returns the JSON of a normaliser or pre-tokenizer without its leading space."""
  match part:
    case {'type': 'Prepend'}:
      return {'type': 'Sequence', 'normalizers': []}
    case {'prepend_scheme': _}:
      return part | {'prepend_scheme': 'never'}
    case {'add_prefix_space': _}:
      return part | {'add_prefix_space': False}
    case {'type': 'Sequence'}:
      return {
          key: [_without_front(each) for each in value] if isinstance(value, list) else value
          for key, value in part.items()
      }
  return part


def to_json(backend: Any, starts: Mapping[int, str]) -> str:
  """Returns the contents of a tokenizer.json.

  Args:
    backend: the `tokenizers.Tokenizer`.
    starts: ids at the start of a plain text, with their texts.

  Returns:
    The contents of the file.
  """
  state = json.loads(backend.to_str())
  if starts:
    first = [{'SpecialToken': {'id': text, 'type_id': 0}} for text in starts.values()]
    sequence = lambda name, kind: {'Sequence': {'id': name, 'type_id': kind}}
    state['post_processor'] = {
        'type': 'TemplateProcessing', 'single': [*first, sequence('A', 0)],
        'pair': [*first, sequence('A', 0), sequence('B', 1)],
        'special_tokens': {
            text: {'id': text, 'ids': [number], 'tokens': [text]}
            for number, text in starts.items()
        },
    }
  return json.dumps(state, ensure_ascii=False)


def splits_like_qwen2(backend: Any) -> bool:
  """True if a tokenizer normalises text and splits it into words like Qwen2's."""
  import tokenizers

  def parts(one: Any) -> str:
    state = json.loads(one.to_str())
    text = json.dumps([state['normalizer'], state['pre_tokenizer']], sort_keys=True)
    return re.sub(r'"(add_prefix_space|trim_offsets)": \w+', '', text)  # Ids do not depend on them.

  same = tokenizers.Tokenizer(tokenizers.models.BPE())
  _set_splitting(same, is_gpt2=False, space=False)
  return parts(backend) == parts(same)


def size_of(backend: Any) -> int:
  """Returns the largest id plus 1, including added tokens."""
  return max(backend.get_vocab(with_added_tokens=True).values()) + 1


def _digest(content: bytes) -> str:
  """Returns the SHA-256 of a file's contents."""
  return hashlib.sha256(content).hexdigest()


def _hashes(
    files: model_files.TokenFiles, new: Sequence[model_files.AddedToken], *parts: Any
) -> tuple[str, str]:
  """Returns `source_hash` and `ids_hash` of parts and added tokens; `new` is from `_add_tokens`."""
  numbered = sorted(files.numbered.items())
  source, ids = ([numbered, tokens] for tokens in (files.unnumbered, new))
  return model_files.fingerprint(*parts, source), model_files.fingerprint(*parts, ids)


def _add_tokens(backend: Any, files: model_files.TokenFiles) -> list[model_files.AddedToken]:
  """Adds the tokens of `files` to `backend`; raises ValueError if one has another id there.

  Returns:
    The tokens of `files.unnumbered` that were not special tokens before.
  """
  from tokenizers import AddedToken

  backend.add_tokens([AddedToken(**token._asdict()) for token in files.numbered.values()])
  for number, token in files.numbered.items():
    actual = backend.token_to_id(token.content)
    if actual != number:
      raise ValueError(
          f'{files.directory}: the added token {token.content!r} must have id {number}, but the '
          f'vocabulary gives it {actual}'
      )

  special = {
      token.content for token in backend.get_added_tokens_decoder().values() if token.special
  }
  new = [token for token in files.unnumbered if token.content not in special]
  for token in new:
    if token.content == files.filler and _is_ordinary(backend, token.content):
      # As in transformers, it is split off in encoding and is not dropped in decoding.
      token = token._replace(special=False)
    backend.add_tokens([AddedToken(**token._asdict())])

  return new


def _is_ordinary(backend: Any, text: str) -> bool:
  """True if encoding the text of a token yields that token."""
  number = backend.token_to_id(text)
  if number is None:
    return False
  inside = continuing(backend) or backend
  return inside.encode(text, add_special_tokens=False).ids == [number]


def _llama_scheme(files: model_files.TokenFiles, content: bytes) -> str:
  """Returns Metaspace's prepend_scheme for a LlamaTokenizer; '' for other classes."""
  name = str(files.config.get('tokenizer_class')).removesuffix('Fast')
  if name != 'LlamaTokenizer' or files.model_type not in ('', 'llama') or b'ByteLevel' in content:
    return ''
  if files.config.get('add_prefix_space') is False:
    return 'never'
  return 'always' if files.config.get('legacy') else 'first'


def _write_spaces(backend: Any, scheme: str) -> None:
  """Makes `backend` encode spaces like SentencePiece, with a leading space by `scheme`."""
  from tokenizers import decoders, pre_tokenizers

  backend.normalizer = None
  backend.pre_tokenizer = pre_tokenizers.Metaspace(
      replacement=SPACE, prepend_scheme=scheme, split=False
  )
  strip = [] if scheme == 'never' else [decoders.Strip(content=' ', left=1)]
  backend.decoder = decoders.Sequence(
      [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )


def from_byte_level_files(
    vocabulary_path: pathlib.Path,
    merges_path: pathlib.Path,
    *,
    stop_tokens: Sequence[str] | None,
    pad_token: str | None,
) -> Loaded:
  """Loads byte-level BPE from a vocabulary and a list of merges: GPT-2 or Qwen2.

  The family is given by tokenizer_class in tokenizer_config.json. Without it, the vocabulary is
  GPT-2's if it contains <|endoftext|>. Qwen2's added tokens come from tokenizer_config.json;
  the default is Qwen2's own three.
  """
  import tokenizers
  from tokenizers import decoders, models

  files = model_files.read(vocabulary_path.parent)
  vocabulary = model_files.read_json_object(vocabulary_path)
  merges = _read_merges(merges_path)

  is_gpt2 = _is_gpt2(files, vocabulary)
  _check_complete(vocabulary_path, vocabulary, merges_path, merges, files)
  try:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
  except Exception as error:
    raise ValueError(
        f'{merges_path} does not fit {vocabulary_path}: {model_files.one_line(error)}'
    ) from None

  space = bool(files.config.get('add_prefix_space'))
  _set_splitting(backend, is_gpt2, space)
  backend.decoder = decoders.ByteLevel()
  own = (_END_OF_TEXT,) if is_gpt2 else _QWEN2_SPECIAL
  if not files.numbered:
    backend.add_special_tokens(list(own))

  new = _add_tokens(backend, files)
  stop_ids, pad_id = stop_and_pad(
      files, backend.token_to_id, size_of(backend), stop_tokens=stop_tokens, pad_token=pad_token,
      default_stops=own[::2],  # Qwen2: <|endoftext|> and <|im_end|>.
  )
  start = files.names.get('bos_token') if files.config.get('add_bos_token') else None
  digests = [_digest(model_files.read_bytes(path)) for path in (vocabulary_path, merges_path)]
  hashes = _hashes(files, new, *digests, is_gpt2, space)
  start_ids = () if start is None else (backend.token_to_id(start),)

  return Loaded(backend, stop_ids, pad_id, start_ids, *hashes)


def _is_gpt2(files: model_files.TokenFiles, vocabulary: dict[str, Any]) -> bool:
  """True for GPT-2's vocabulary, False for Qwen2's; raises ValueError for others."""
  name = str(files.config.get('tokenizer_class') or '').removesuffix('Fast')
  if name in ('', 'PreTrainedTokenizer', 'TokenizersBackend'):
    return _END_OF_TEXT in vocabulary
  if name not in ('GPT2Tokenizer', 'Qwen2Tokenizer'):
    raise ValueError(
        f'{files.directory}: a vocabulary with merges must be of tokenizer_class GPT2Tokenizer '
        f'or Qwen2Tokenizer, got {name!r}: save it as a tokenizer.json'
    )
  return name == 'GPT2Tokenizer'


def _check_complete(
    vocabulary_path: pathlib.Path,
    vocabulary: dict[str, Any],
    merges_path: pathlib.Path,
    merges: list[tuple[str, str]],
    files: model_files.TokenFiles,
) -> None:
  """Raises ValueError if a token is neither a byte, nor an added token, nor made by a merge."""
  from tokenizers import pre_tokenizers

  explained = {_END_OF_TEXT, *pre_tokenizers.ByteLevel.alphabet()}
  explained.update(left + right for left, right in merges)
  explained.update(token.content for token in (*files.numbered.values(), *files.unnumbered))
  strange = vocabulary.keys() - explained
  if strange:
    raise ValueError(
        f'{merges_path} has {len(merges)} merges, which do not produce {len(strange)} of the '
        f'{len(vocabulary)} tokens of {vocabulary_path.name}: one of the files is truncated'
    )


def _set_splitting(backend: Any, is_gpt2: bool, space: bool) -> None:
  """Makes `backend` split text into words like GPT-2 or Qwen2, optionally with a leading space."""
  import tokenizers
  from tokenizers import normalizers, pre_tokenizers

  if is_gpt2:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    return
  backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_QWEN2_SPLIT), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
  ])


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
  """Reads the merges of a text file: one pair per line, after an optional version line."""
  try:
    lines = model_files.read_bytes(path).decode().split('\n')
  except UnicodeDecodeError:
    raise ValueError(f'{path} is not UTF-8: the file is damaged or truncated') from None
  start = 1 if lines[0].startswith('#version') else 0
  merges = []
  for number, line in enumerate(lines[start:], start + 1):
    pair = line.rstrip('\r').split(' ')
    if pair == ['']:
      continue
    if len(pair) != 2 or not all(pair):
      raise ValueError(f'{path}, line {number}: expected two tokens and one space, got {line!r}')
    merges.append((pair[0], pair[1]))
  return merges
