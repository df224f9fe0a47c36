"""Reads the token definitions in the small JSON files next to a model's weights.

These are tokenizer_config.json, special_tokens_map.json, added_tokens.json,
generation_config.json and config.json, each if it exists, with the same precedence as in
transformers.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

NAMES = (
    'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
    'generation_config.json', 'config.json')
_FLAGS = ('special', 'lstrip', 'rstrip', 'single_word', 'normalized')


class AddedToken(NamedTuple):
  """A token that is split off a text before any other processing.

  Attributes:
    content: text of the token.
    special: decoding drops it.
    lstrip: it absorbs the white space before it.
    rstrip: it absorbs the white space after it.
    single_word: it matches only between non-letters.
    normalized: it is matched in the normalised text.
  """

  content: str
  special: bool = True
  lstrip: bool = False
  rstrip: bool = False
  single_word: bool = False
  normalized: bool = False


@dataclasses.dataclass(frozen=True)
class TokenFiles:
  """Contents of the files.

  Attributes:
    directory: directory of the files.
    config: tokenizer_config.json; empty if there is none.
    model_type: model_type of config.json; '' if there is none.
    names: text of each named token ('bos_token', 'eos_token', ...), without null ones.
    numbered: {id: token} of the tokens with an id in the files; ascending.
    unnumbered: named and additional tokens that are not in `numbered`.
    filler: the pad_token, if only that name makes it special; otherwise ''.
    model_stop_ids: eos_token_id of generation_config.json, or else of config.json.
    stop_file: the file that defines `model_stop_ids`.
  """

  directory: pathlib.Path
  config: dict[str, Any]
  model_type: str
  names: dict[str, str]
  numbered: dict[int, AddedToken]
  unnumbered: tuple[AddedToken, ...]
  filler: str
  model_stop_ids: tuple[int, ...]
  stop_file: str


def read(directory: str | pathlib.Path) -> TokenFiles:
  """Reads the files in `directory`; raises a one-line ValueError that names a damaged one."""
  directory = pathlib.Path(directory)
  config = _read_optional(directory / 'tokenizer_config.json')
  more = _read_optional(directory / 'special_tokens_map.json')
  # Old checkpoints have the names in a separate map, which then takes precedence.
  maps = (more, config) if 'added_tokens_decoder' in config else (config, more)
  entries = {key: value for source in maps for key, value in source.items()}
  named = {key: value for key, value in entries.items() if _is_named(key, value)}

  extras = entries.get('extra_special_tokens') or entries.get('additional_special_tokens') or []
  if isinstance(extras, dict):
    named, extras = named | extras, []
  if not isinstance(extras, list):
    raise ValueError(
        f'{directory}: additional_special_tokens must be a list of tokens, got '
        f'{type(extras).__name__}'
    )

  special = [_added_token(value, directory) for value in (*named.values(), *extras)]
  numbered = _numbered(directory, config, {token.content for token in special})
  known = {token.content for token in numbered.values()}
  # If a token occurs twice, its named entry takes precedence over the list of extras.
  unnumbered = {token.content: token for token in special[::-1] if token.content not in known}
  names = {key: _added_token(value, directory).content for key, value in named.items()}
  filler = names.get('pad_token', '')
  contents = [token.content for token in (*special, *numbered.values())]
  model_config = _read_optional(directory / 'config.json')
  stop_ids, stop_file = _model_stop_ids(directory, model_config)

  return TokenFiles(
      directory=directory,
      config=config,
      model_type=str(model_config.get('model_type') or ''),
      names=names,
      numbered=numbered,
      unnumbered=tuple(unnumbered.values())[::-1],
      filler=filler if contents.count(filler) == 1 else '',
      model_stop_ids=stop_ids,
      stop_file=stop_file,
  )


def _is_named(key: str, value: Any) -> bool:
  """True if an entry names a token: eos_token, but not add_eos_token: true."""
  return key.endswith('_token') and isinstance(value, (str, dict))


def _added_token(value: Any, directory: pathlib.Path, **defaults: bool) -> AddedToken:
  """Converts a string or an object to a token."""
  if isinstance(value, str):
    return AddedToken(value, **defaults)
  if isinstance(value, dict) and isinstance(value.get('content'), str):
    flags = {flag: bool(value[flag]) for flag in _FLAGS if flag in value}
    return AddedToken(value['content'], **{**defaults, **flags})
  raise ValueError(
      f'{directory}: a token must be a text or an object with "content", got {value!r}')


def _numbered(
    directory: pathlib.Path, config: dict[str, Any], special: set[str]
) -> dict[int, AddedToken]:
  """Reads the tokens with explicit ids: added_tokens_decoder, or else added_tokens.json."""
  numbered = config.get('added_tokens_decoder')
  if numbered is None:
    old = _read_optional(directory / 'added_tokens.json')
    strange = [number for number in old.values() if type(number) is not int]
    if strange:
      raise ValueError(
          f'{directory / "added_tokens.json"}: ids of added tokens must be integers, got '
          f'{strange[0]!r}'
      )

    numbered = {
        number: {'content': content, 'special': content in special,
                 'normalized': content not in special}
        for content, number in old.items()
    }

  try:
    by_id = {int(key): value for key, value in numbered.items()}
  except (AttributeError, TypeError, ValueError):
    raise ValueError(f'{directory}: ids of added tokens must be integers') from None

  return {
      key: _added_token(by_id[key], directory, special=False, normalized=True)
      for key in sorted(by_id)
  }


def _model_stop_ids(
    directory: pathlib.Path, model_config: dict[str, Any]
) -> tuple[tuple[int, ...], str]:
  """Returns the model's stop ids and the file that defines them."""
  generation = _read_optional(directory / 'generation_config.json')
  inner = model_config.get('text_config')
  for file, fields in (
      ('generation_config.json', generation),
      ('config.json', model_config),
      ('config.json', inner if isinstance(inner, dict) else {}),
  ):
    value = fields.get('eos_token_id')
    if value is None or value == []:
      continue
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
      raise ValueError(f'{directory / file}: eos_token_id must be ids, got {value!r}')
    return tuple(ids), file
  return (), ''


def _read_optional(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object in a file; {} if there is no such file."""
  return read_json_object(path) if path.exists() else {}


def read_bytes(path: pathlib.Path) -> bytes:
  """Reads a file; raises a one-line ValueError if it cannot be read."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise ValueError(f'cannot read the file {path}: {error.strerror}') from None


def digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file's contents; '' if it cannot be read."""
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError:
    return ''


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON object in a file; raises a one-line ValueError if there is none."""
  content = read_bytes(path)
  try:
    value = json.loads(content)
  except ValueError as error:
    raise ValueError(f'{path} is not complete JSON: {one_line(error)}') from None
  if not isinstance(value, dict):
    raise ValueError(f'{path} must contain a JSON object, got {type(value).__name__}')
  return value


def fingerprint(*parts: Any) -> str:
  """Returns the first 16 hexadecimal digits of the SHA-256 of `parts` as JSON."""
  text = json.dumps(parts, ensure_ascii=True, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def one_line(error: Exception) -> str:
  """Returns an error's message without line breaks."""
  return ' '.join(str(error).split())
